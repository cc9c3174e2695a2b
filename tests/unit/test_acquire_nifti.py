from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdecode.acquire.nifti import NiftiReader
from rtdecode.errors import IncompleteFile, VolumeError

SHAPE = (7, 5, 4)
AFFINE = np.array([[-3.0, 0.1, 0, 10], [0.1, 3.0, 0.2, -20], [0, -0.2, 4.0, 5], [0, 0, 0, 1]])


def image(data: np.ndarray) -> nib.Nifti1Image:
    made = nib.Nifti1Image(data, AFFINE)
    made.header.set_xyzt_units("mm", "msec")
    made.header["pixdim"][4] = 1500
    return made


def values(dtype: str) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 4000, SHAPE).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u2", "u1", "i4", "f4", "f8"])
def test_what_nibabel_writes_is_read(tmp_path: Path, suffix: str, kind: type[nib.Nifti1Image], dtype: str) -> None:
    data = values(dtype) % 250 + 1
    path = tmp_path / f"sub_run-03_00012{suffix}"
    made = kind(data, AFFINE, header=kind.header_class(endianness=">" if dtype.startswith(">") else "<"))
    made.set_data_dtype(data.dtype)
    made.header.set_xyzt_units("mm", "msec")
    made.header["pixdim"][4] = 1500
    nib.save(made, path)
    stored = NiftiReader(tmp_path).read(path).volumes[0]
    again = nib.load(path)
    np.testing.assert_array_equal(stored.data * stored.slope + stored.intercept, again.get_fdata())
    np.testing.assert_allclose(stored.affine, again.affine)
    assert stored.data.dtype.isnative
    assert stored.data.dtype == np.float32 or stored.data.dtype.kind in "iu"
    assert stored.t_r_s == pytest.approx(1.5)
    assert (stored.identity.run, stored.identity.instance) == (3, 12)


def test_scaling_is_kept_apart(tmp_path: Path) -> None:
    made = image(values("i2"))
    made.header.set_slope_inter(0.5, 7.0)
    (tmp_path / "v_1.nii").write_bytes(made.to_bytes())
    stored = NiftiReader(tmp_path).read(tmp_path / "v_1.nii").volumes[0]
    assert (stored.slope, stored.intercept) == (0.5, 7.0)
    np.testing.assert_array_equal(stored.data, values("i2"))


def test_slice_times_follow_the_header(tmp_path: Path) -> None:
    made = image(values("i2"))
    made.header.set_dim_info(slice=2)
    made.header["slice_code"] = 3
    made.header["slice_end"] = SHAPE[2] - 1
    made.header["slice_duration"] = 375.0
    (tmp_path / "v_1.nii").write_bytes(made.to_bytes())
    stored = NiftiReader(tmp_path).read(tmp_path / "v_1.nii").volumes[0]
    assert stored.slice_times_s is not None
    np.testing.assert_allclose(stored.slice_times_s, [0, 0.75, 0.375, 1.125])


def test_a_file_without_a_unit_of_time_has_no_repetition_time(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values("i2"), AFFINE), tmp_path / "v_1.nii")
    assert NiftiReader(tmp_path).read(tmp_path / "v_1.nii").volumes[0].t_r_s is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_every_shorter_file_is_incomplete(tmp_path: Path, fraction: float, packed: bool) -> None:
    raw = image(values("i2")).to_bytes()
    raw = gzip.compress(raw, mtime=0) if packed else raw
    path = tmp_path / ("v_1.nii.gz" if packed else "v_1.nii")
    path.write_bytes(raw[: int(fraction * len(raw))])
    with pytest.raises(IncompleteFile):
        NiftiReader(tmp_path).read(path)


def test_zeros_at_the_end_are_counted_or_wait_for_the_trailer(tmp_path: Path) -> None:
    raw = image(values("i2")).to_bytes()
    (tmp_path / "v_1.nii").write_bytes(raw[:-60] + bytes(60))
    assert NiftiReader(tmp_path).read(tmp_path / "v_1.nii").volumes[0].zero_tail == 30
    packed = gzip.compress(raw, mtime=0)
    (tmp_path / "v_1.nii.gz").write_bytes(packed[:-60] + bytes(60))
    with pytest.raises(IncompleteFile):
        NiftiReader(tmp_path).read(tmp_path / "v_1.nii.gz")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(image(values("i2")).to_bytes(), mtime=0))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "v_1.nii.gz").write_bytes(packed)
    with pytest.raises(VolumeError):
        NiftiReader(tmp_path).read(tmp_path / "v_1.nii.gz")


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path, packed: bool) -> None:
    made = image(values("i2"))
    made.header["dim"][1:4] = 30_000
    raw = made.header.binaryblock + bytes(4)
    path = tmp_path / ("v_1.nii.gz" if packed else "v_1.nii")
    path.write_bytes(gzip.compress(raw + bytes(50_000_000)) if packed else raw)
    with pytest.raises(VolumeError) as caught:
        NiftiReader(tmp_path).read(path)
    assert not isinstance(caught.value, IncompleteFile)


@pytest.mark.parametrize(
    ("data", "name", "field"),
    [
        (np.ones((4, 4, 4, 2, 2), np.int16), "v_1.nii", "dim"),
        (np.ones((4, 4), np.int16), "v_1.nii", "dim"),
        (np.ones((4, 4, 4), np.complex64), "v_1.nii", "datatype"),
        (np.ones((4, 4, 4), np.int16), "volume.nii", "name"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, data: np.ndarray, name: str, field: str) -> None:
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / name)
    with pytest.raises(VolumeError) as caught:
        NiftiReader(tmp_path).read(tmp_path / name)
    assert caught.value.field == field


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v_1.nii").write_text("hello" * 100)
    with pytest.raises(VolumeError, match="sizeof_hdr"):
        NiftiReader(tmp_path).read(tmp_path / "v_1.nii")


@pytest.mark.parametrize(
    ("name", "series", "run", "instance"),
    [
        ("run-02_bold_00007.nii", "./run-02", 2, 7),
        ("run3/vol12.nii.gz", "run3/run-3", 3, 12),
        ("a/b/img_0003.nii", "a/b/img_", None, 3),
        ("vol0.nii", "./vol", None, 0),
    ],
)
def test_names_tell_run_and_number(tmp_path: Path, name: str, series: str, run: int | None, instance: int) -> None:
    identity = NiftiReader(tmp_path).identify(tmp_path / name)
    assert identity is not None
    assert (identity.series_uid, identity.run, identity.instance) == (series, run, instance)
