from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rtdecode.acquire.dicom import DicomReader
from rtdecode.simulate import mosaic_writer as mosaic
from rtdecode.simulate.protocol import Protocol

START = datetime.datetime(2000, 1, 1, 9)


def turned(angles_deg: tuple[float, float, float], voxel_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() @ np.diag([-1, -1, 1]) * voxel_mm
    affine[:3, 3] = (80.0, 60.0, -40.0)
    return affine


CASES = {
    "default": (Protocol().shape, Protocol().affine, Protocol().slice_times_s),
    "not square, oblique": ((64, 48, 24), turned((20, -7, 4), (3.0, 3.5, 4.0)), np.arange(24) * 0.06),
    "reversed": ((32, 40, 37), turned((5, 0, 0), (3, 3, 3)) @ np.diag([1, 1, -1, 1.0]), np.arange(37)[::-1] * 0.04),
    "sagittal": ((48, 48, 30), turned((0, 80, 10), (4, 4, 4)), np.arange(30) * 0.05),
    "multiband": ((52, 52, 72), turned((0, 0, 0), (2, 2, 2)), np.tile(np.arange(18) * 0.08, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_dcm2niix_converts_without_a_warning(case: str, tmp_path: Path) -> None:
    shape, affine, times = CASES[case]
    volumes = [np.random.default_rng(i).integers(1, 4000, shape).astype(np.uint16) for i in range(3)]
    (tmp_path / "dicom").mkdir()
    series = mosaic.MosaicSeries(study="x", number=5, affine=affine, t_r_s=1.5, slice_times_s=times, start=START)
    for number, data in enumerate(volumes, 1):
        mosaic.write(tmp_path / "dicom", series, number, data)
    done = subprocess.run(
        [dcm2niix.bin, "-b", "y", "-z", "n", "-f", "out", "-o", str(tmp_path), str(tmp_path / "dicom")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "warn" not in (done.stdout + done.stderr).lower()
    assert "error" not in (done.stdout + done.stderr).lower()
    image = nib.load(tmp_path / "out.nii")
    sidecar = json.loads((tmp_path / "out.json").read_text())
    theirs = nib.as_closest_canonical(image)
    ours = nib.as_closest_canonical(nib.Nifti1Image(np.stack(volumes, axis=3).astype(np.int32), affine))
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    assert sidecar["RepetitionTime"] == 1.5
    middle = [np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1]) for k in range(shape[2])]
    distance = np.linalg.norm([[(affine @ a - image.affine @ b)[:3] for b in middle] for a in middle], axis=2)
    assert distance.min(axis=0).max() < 1e-2
    np.testing.assert_allclose(times[distance.argmin(axis=0)], sidecar["SliceTiming"], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_reading_gives_back_what_was_written(case: str, tmp_path: Path) -> None:
    shape, affine, times = CASES[case]
    data = np.random.default_rng(1).integers(1, 4000, shape).astype(np.uint16)
    series = mosaic.MosaicSeries(study="x", number=5, affine=affine, t_r_s=1.5, slice_times_s=times, start=START)
    (stored,) = DicomReader().read(mosaic.write(tmp_path, series, 9, data)).volumes
    np.testing.assert_array_equal(stored.data, data)
    np.testing.assert_allclose(stored.affine, affine, atol=1e-6)
    assert stored.slice_times_s is not None
    np.testing.assert_allclose(stored.slice_times_s, times, atol=1e-9)
    assert (stored.identity.instance, stored.identity.series_number, stored.t_r_s) == (9, 5, 1.5)
    assert stored.acquired_s == (START + datetime.timedelta(seconds=12)).timestamp()


def test_a_file_is_complete_when_its_name_appears(tmp_path: Path) -> None:
    series = mosaic.MosaicSeries(
        study="x", number=5, affine=np.eye(4), t_r_s=1.5, slice_times_s=np.arange(4) * 0.1, start=START
    )
    path = mosaic.write(tmp_path, series, 1, np.ones((8, 8, 4), np.uint16))
    assert path.name == "001_000005_000001.dcm"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_slice_times_interleave_and_fill_the_repetition() -> None:
    protocol = Protocol(shape=(64, 64, 12), t_r_s=1.2, multiband=2)
    times = protocol.slice_times_s
    np.testing.assert_allclose(times[:6], times[6:])
    np.testing.assert_allclose(np.sort(times[:6]), np.arange(6) * 0.2, atol=0.00125)
    assert np.argsort(times[:6]).tolist() == [1, 3, 5, 0, 2, 4]
    with pytest.raises(ValueError, match="multiples of 5"):
        _ = Protocol(multiband=5).slice_times_s


def test_the_field_of_view_is_centred_and_tilted() -> None:
    protocol = Protocol(tilt_deg=-12.0, centre_mm=(1.0, 2.0, 3.0))
    centre = protocol.affine @ [31.5, 31.5, 17.5, 1]
    np.testing.assert_allclose(centre[:3], (1.0, 2.0, 3.0), atol=1e-9)
    front, back = protocol.affine @ [31.5, 0, 17.5, 1], protocol.affine @ [31.5, 63, 17.5, 1]
    assert front[1] > back[1]
    assert np.rad2deg(np.arctan2(front[2] - back[2], front[1] - back[1])) == pytest.approx(-12.0)
