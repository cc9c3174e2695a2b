"""Slices that are scaled each by its own: numpy says what the values are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from rtdecode.acquire.dicom import DicomReader
from rtdecode.acquire.parrec import ParRecReader
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings, SeriesRule
from tests.conftest import FakeClock
from tests.unit import test_acquire_enhanced as enhanced

SCALES = ((1.0, 0.0), (2.0, -3.0), (4.0, 0.5))


def test_frames_of_an_enhanced_file_keep_their_own_slopes(tmp_path: Path) -> None:
    path = enhanced.write(tmp_path / "e.dcm", enhanced.all_frames(2))
    dataset = pydicom.dcmread(path)
    for place, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        slope, intercept = SCALES[(place + place // 3) % 3]  # another order in the second volume
        frame.PixelValueTransformationSequence = enhanced.item(RescaleSlope=slope, RescaleIntercept=intercept)
    dataset.save_as(path)
    for turn, volume in enumerate(DicomReader().read(path).volumes):
        data, slope, intercept = volume.rescaled()
        scales = np.array([SCALES[(turn + place) % 3] for place in range(3)])
        expected = enhanced.values(turn, 0, "MAGNITUDE") * scales[:, 0] + scales[:, 1]
        np.testing.assert_allclose(data * slope + intercept, expected)
        assert data.dtype == np.float32
        assert "scaling differs between slices" in " ".join(volume.problems)


def philips_slice(
    path: Path,
    volume: int,
    place: int,
    stored: np.ndarray,
    scale: tuple[float, float] = (1.0, 0.0),
    echo_ms: float = 30.0,
) -> None:
    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.SOPClassUID = out.file_meta.MediaStorageSOPClassUID = MRImageStorage
    out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = f"2.25.{volume}{place}{echo_ms:.0f}"
    out.SeriesInstanceUID, out.SeriesNumber, out.Manufacturer = "2.25.5", 5, "Philips Medical Systems"
    out.InstanceNumber = 3 * (volume - 1) + place + 1
    out.NumberOfTemporalPositions, out.TemporalPositionIdentifier = 2, volume
    out.ImageType, out.RepetitionTime = ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], 2000.0
    out.ImageOrientationPatient, out.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * place]
    out.PixelSpacing, out.SliceThickness, out.SpacingBetweenSlices = [3.0, 3.0], 4.0, 4.0
    out.RescaleSlope, out.RescaleIntercept = scale
    out.EchoTime = echo_ms
    out.Rows, out.Columns, out.SamplesPerPixel, out.PhotometricInterpretation = *stored.shape, 1, "MONOCHROME2"
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 16, 12, 11, 0
    private = out.private_block(0x2001, "Philips Imaging DD 001", create=True)
    private.add_new(0x18, "SL", 3)
    out.PixelData = stored.astype("<u2").tobytes()
    out["PixelData"].VR = "OW"
    out.save_as(path, enforce_file_format=True)


def test_slices_in_files_of_their_own_keep_their_own_slopes(tmp_path: Path, clock: FakeClock) -> None:
    stored = np.random.default_rng(1).integers(1, 4000, (2, 3, 6, 5))
    for volume in range(2):
        for place in range(3):
            path = tmp_path / f"{volume}_{place}.dcm"
            philips_slice(path, volume + 1, place, stored[volume, place], SCALES[(volume + place) % 3])
    settings = ScannerSettings(export_dir=tmp_path, watch="polling", series=(SeriesRule(description="*"),))
    found = [arrival.item for arrival in FolderWatcher(settings, "s", clock).poll()]
    assert len(found) == 2
    for turn, volume in enumerate(found):
        assert isinstance(volume, Volume)
        expected = np.stack(
            [stored[turn, k].T * SCALES[(turn + k) % 3][0] + SCALES[(turn + k) % 3][1] for k in range(3)], axis=2
        )
        np.testing.assert_allclose(volume.data * volume.slope + volume.intercept, expected)


@pytest.mark.parametrize("echo", [1, 2])
@pytest.mark.parametrize("order", ["slices", "echoes"])
def test_echoes_that_only_their_times_tell_apart_are_never_mixed(
    tmp_path: Path, clock: FakeClock, echo: int, order: str
) -> None:
    stored = np.random.default_rng(1).integers(1, 4000, (2, 2, 3, 6, 5))  # volumes, echoes, slices
    for volume in range(2):
        for number, echo_ms in enumerate((12.0, 30.0)):
            for place in range(3):
                name = f"{place}_{number}" if order == "slices" else f"{number}_{place}"
                path = tmp_path / f"{volume}_{name}.dcm"
                philips_slice(path, volume + 1, place, stored[volume, number, place], echo_ms=echo_ms)
    rules = (SeriesRule(description="*"),)
    settings = ScannerSettings(export_dir=tmp_path, watch="polling", series=rules, echo=echo)
    found = [arrival.item for arrival in FolderWatcher(settings, "s", clock).poll()]
    volumes = [item for item in found if isinstance(item, Volume)]
    assert [item.stamp.volume for item in volumes] == [0, 1]
    for turn, item in enumerate(volumes):
        np.testing.assert_array_equal(item.data, stored[turn, echo - 1].transpose(2, 1, 0))
    assert [item.reason for item in found if not isinstance(item, Volume)] == [
        f"left out: echo {3 - echo} of series 5, [scanner] echo is {echo}"
    ]


@pytest.mark.parametrize("began_s", [None, 1.6])
def test_rows_of_a_par_file_keep_their_own_scaling_and_time(
    shared: Path, tmp_path: Path, began_s: float | None
) -> None:
    """Philips value = (stored * RS + RI) / (RS * SS); the third of the numbers is made to differ."""
    source = next((shared / "data" / "philips-parrec-epi-asc").glob("*.PAR"))
    rows, out = [], []
    for line in source.read_text(encoding="latin-1").splitlines():
        words = line.split()
        if words[:1] and words[0].isdecimal() and len(words) > 40:
            words[13] = str(0.5 + 0.25 * (int(words[0]) % 3))
            if began_s is not None:
                words[31] = str((int(words[2]) - 1) * began_s)
            rows.append([float(word) for word in words])
            line = " ".join(words)
        out.append(line)
    path = tmp_path / "a.PAR"
    path.write_text("\n".join(out) + "\n", encoding="latin-1")
    (tmp_path / "a.REC").write_bytes(source.with_suffix(".REC").read_bytes())
    table = np.array(rows)
    columns, lines = table[0, 9:11].astype(int)
    images = np.fromfile(tmp_path / "a.REC", "<u2").reshape(len(table), lines, columns)
    for volume in ParRecReader(tmp_path).read(path).volumes:
        mine = table[table[:, 2] == volume.identity.instance]
        mine = mine[np.argsort(mine[:, 0])]
        expected = np.stack([(images[int(r[6])].T * r[12] + r[11]) / (r[12] * r[13]) for r in mine], axis=2)
        data, slope, intercept = volume.rescaled()
        np.testing.assert_allclose(data * slope + intercept, expected, rtol=1e-5, atol=1e-3)
        assert began_s is None or volume.began_s == pytest.approx((volume.identity.instance - 1) * began_s)
