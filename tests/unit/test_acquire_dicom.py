from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdecode.acquire import csa
from rtdecode.acquire.dicom import DicomReader
from rtdecode.acquire.readers import Readers
from rtdecode.errors import IncompleteFile, VolumeError
from rtdecode.simulate import mosaic_writer as mosaic
from tests.scans import manifest, unpack
from tests.watching import series

MOSAICS = (
    "siemens-ve11-skyra-rtcloud",
    "siemens-ve11-prisma-pyneal13",
    "siemens-ve11-skyra-nih",
    "siemens-vb17-trio",
    "siemens-vd13-prisma-int",
)
# the converter takes the times of the second volume of that series, and they jitter by one tick of 2.5 ms
TIMES_ATOL_S = {"siemens-vb17-trio": 2.6e-3}


@pytest.mark.parametrize("name", MOSAICS)
def test_real_mosaics_agree_with_dcm2niix(shared: Path, name: str, tmp_path: Path) -> None:
    reference = manifest(shared)[name]["reference"][0]
    reader = DicomReader()
    for path, index in unpack(shared, name, tmp_path):
        (stored,) = reader.read(path).volumes
        image = nib.as_closest_canonical(nib.Nifti1Image(stored.data.astype(np.int32), stored.affine))
        values = np.ascontiguousarray(np.asarray(image.dataobj), dtype="<i4")
        assert list(image.shape) == reference["canonical_shape"]
        np.testing.assert_allclose(image.affine, reference["canonical_affine"], atol=1e-3)
        if index is not None:
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            assert digest == reference["canonical_volume_sha256_i4"][stored.identity.instance - 1]
        assert stored.t_r_s == pytest.approx(reference["RepetitionTime"], abs=1e-6)
        assert stored.slice_times_s is not None
        shape = stored.data.shape
        middle = np.array([[(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1] for k in range(shape[2])]) @ stored.affine.T
        distance = np.linalg.norm(middle[:, None, :3] - np.array(reference["slice_centres_ras"]), axis=2)
        assert distance.min(axis=0).max() < 1e-3
        np.testing.assert_allclose(
            stored.slice_times_s[distance.argmin(axis=0)],
            reference["SliceTiming"],
            atol=TIMES_ATOL_S.get(name, 1e-6),
        )


@pytest.mark.parametrize("name", MOSAICS)
def test_affine_and_private_header_agree_with_nibabel(shared: Path, name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader, dicomwrappers
    path = unpack(shared, name, tmp_path)[0][0]
    dataset = pydicom.dcmread(path)
    wrapper = dicomwrappers.wrapper_from_data(dataset)
    rows_first = DicomReader().read(path).volumes[0].affine[:, [1, 0, 2, 3]]
    np.testing.assert_allclose(rows_first, np.diag([-1, -1, 1, 1]) @ wrapper.affine, atol=1e-9)
    theirs = csareader.get_csa_header(dataset)["tags"]
    ours = csa.parse(dataset[0x0029, 0x1010].value, list(theirs))
    for tag in (
        "NumberOfImagesInMosaic",
        "SliceNormalVector",
        "MosaicRefAcqTimes",
        "PhaseEncodingDirectionPositive",
    ):
        assert [float(item) for item in ours[tag]] == [float(item) for item in theirs[tag]["items"]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.random.default_rng(0).integers(1, 4000, (16, 12, 7)).astype(np.uint16)
    return mosaic.write(tmp_path_factory.mktemp("whole"), series((16, 12, 7)), 1, data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_every_shorter_file_is_incomplete(written: Path, tmp_path: Path, fraction: float) -> None:
    raw = written.read_bytes()
    path = tmp_path / "part.dcm"
    path.write_bytes(raw[: int(fraction * len(raw))])
    with pytest.raises(IncompleteFile):
        DicomReader().read(path)


def test_a_zero_filled_tail_is_counted_inside_used_tiles_only(written: Path, tmp_path: Path) -> None:
    raw = written.read_bytes()
    assert DicomReader().read(written).volumes[0].zero_tail == 0
    blank_tiles = 2 * (2 * 16 + 2 * 12 * 48 - 12 * 48 - 2 * 16)  # 9 tiles, 7 used: part of the last tile row is blank
    assert not any(raw[-2 * 32 :])
    path = tmp_path / "filled.dcm"
    path.write_bytes(raw[: len(raw) - blank_tiles] + bytes(blank_tiles))
    assert DicomReader().read(path).volumes[0].zero_tail > 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=12))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_header_raises_nothing_but_volume_errors(
    written: Path, tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    raw = bytearray(written.read_bytes())
    for at, value in edits:
        raw[at] = value
    path = tmp_path / "damaged.dcm"
    path.write_bytes(raw)
    reader = DicomReader()
    try:
        assert sum(volume.data.nbytes for volume in reader.read(path).volumes) <= len(raw)
    except VolumeError:
        reader.identify(path)


def test_what_is_not_dicom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("not an image" * 100)
    with pytest.raises(VolumeError, match="DICM"):
        DicomReader().read(path)


@pytest.mark.parametrize("raw", [b"", b"SV10", csa.MAGIC + b"\xff" * 200, csa.MAGIC + bytes(200), b"\x01\0\0\0" * 40])
def test_a_damaged_private_header_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|cut short"):
        csa.parse(raw, ["NumberOfImagesInMosaic"])


Numbers = tuple[int, int, int | None, float]  # instance, acquisition, echo, echo time


def _numbered(folder: Path, files: list[Numbers]) -> list[tuple[int, int | None]]:
    """Write mosaics of one series, read them in this order; return volume and echo of each, all known."""
    readers = Readers(folder)
    read = []
    for instance, acquisition, echo, echo_ms in files:
        made = mosaic.dataset(series(), instance, np.ones((8, 6, 4), np.uint16))
        made.AcquisitionNumber, made.EchoTime = acquisition, echo_ms
        if echo is not None:
            made.EchoNumbers = echo
        path = folder / f"{instance}.dcm"
        made.save_as(path, enforce_file_format=True)
        read.extend(readers.read(path).volumes)
    found = [readers.placed(stored).identity for stored in read]
    assert [readers.identify(folder / f"{number[0]}.dcm") for number in files] == found
    return [(identity.instance, identity.echo) for identity in found]


ECHOES_MS = (12.0, 28.0, 44.0)
THREE_ECHOES = [(3 * volume + echo, volume + 1, echo, ECHOES_MS[echo - 1]) for volume in range(4) for echo in (1, 2, 3)]


@pytest.mark.parametrize("order", [1, -1, 5, 7])
def test_volumes_of_several_echoes_are_counted_across_them(tmp_path: Path, order: int) -> None:
    """Instances count across echoes, whatever order files come in."""
    shuffled = [THREE_ECHOES[(place * order) % 12] for place in range(12)]
    expected = [((instance - 1) // 3 + 1, echo) for instance, _, echo, _ in shuffled]
    assert _numbered(tmp_path, list(shuffled)) == expected


def test_echoes_without_numbers_are_told_by_their_times(tmp_path: Path) -> None:
    unnumbered: list[Numbers] = [(i, acquisition, None, time) for i, acquisition, _, time in THREE_ECHOES]
    assert _numbered(tmp_path, unnumbered) == [((i - 1) // 3 + 1, echo) for i, _, echo, _ in THREE_ECHOES]


@pytest.mark.parametrize("restart", [0, 20])
def test_an_acquisition_number_that_lags_or_starts_again_loses_no_volume(tmp_path: Path, restart: int) -> None:
    """One echo: instances count volumes, and the acquisition number means nothing."""
    counter = [(i - 1) % restart + 1 if restart else max(i - 1, 1) for i in range(1, 46)]
    files: list[Numbers] = [(i, counter[i - 1], 1, 30.0) for i in range(1, 46)]
    assert _numbered(tmp_path, files) == [(i, 1) for i in range(1, 46)]
