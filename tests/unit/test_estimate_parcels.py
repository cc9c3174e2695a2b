"""Label images: the mean of each parcel as nilearn takes it, and its percent signal change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker
from scipy import ndimage

from rtdecode.errors import SettingsError
from rtdecode.estimate import Estimator
from rtdecode.estimate.design import RunTiming
from rtdecode.estimate.labels import read_parcels, sums_by_place
from rtdecode.estimate.learning import first_scales
from rtdecode.estimate.region import RegionSignal
from rtdecode.records import RegisteredVolume, Stamp, Volume
from rtdecode.session.doubts import parcel_faults
from rtdecode.settings import EstimateSettings

SHAPE = (24, 26, 14)
AFFINE = np.diag([6.0, 6.0, 8.0, 1.0])
T_R_S = 2.0


def head() -> np.ndarray:
    grid = (np.indices(SHAPE).T - np.array([11.5, 12.5, 6.5])).T / np.array([9.0, 10.0, 5.5]).reshape(3, 1, 1, 1)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.5)
    return np.where((grid**2).sum(0) < 1, 900 + 600 * texture, 5.0)


def volumes(length: int = 12) -> list[Volume]:
    """A head that moves by fractions of a voxel, and noise."""
    rng = np.random.default_rng(1)
    made = []
    for index in range(length):
        shift = 0.04 * index * np.array([1.0, -0.6, 0.4])
        data = ndimage.shift(head(), shift, order=3, mode="nearest") + 4 * rng.standard_normal(SHAPE)
        made.append(
            Volume(
                stamp=Stamp(session="s", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
                data=data.astype(np.float32),
                affine=AFFINE,
                t_r_s=T_R_S,
                slice_times_s=None,
                series_uid="1.2",
                instance=index + 1,
                path=f"{index}.dcm",
            )
        )
    return made


def labels() -> np.ndarray:
    """Blocks of 6 voxels a side, labels 3, 6, 9 and on, half of them outside of the head; one of two voxels inside."""
    i, j, k = np.indices(SHAPE) // 6
    image = (3 * (1 + i + 4 * j + 20 * k)).astype(np.int16)
    image[:, :, 12:] = 0
    image[11, 12, 6:8] = 500
    return image


def written(folder: Path, image: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path = folder / "labels.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), path)
    return path


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Estimator, list[RegisteredVolume], Path]:
    folder = tmp_path_factory.mktemp("parcels")
    path = written(folder, labels())
    nib.save(nib.Nifti1Image((labels() == 24).astype(np.uint8), AFFINE), folder / "one.nii.gz")
    settings = EstimateSettings(
        parcels={"blocks": path}, regions={"one": folder / "one.nii.gz"}, censor_fd_mm=1.0, confounds="none"
    )
    estimator = Estimator(settings, "s")
    estimator.start_run(1, T_R_S)
    return estimator, [estimator.step(volume)[0] for volume in volumes()], path


def test_parcels_are_the_means_that_nilearn_takes_of_the_resampled_volumes(
    played: tuple[Estimator, list[RegisteredVolume], Path],
) -> None:
    estimator, registered, _ = played
    space = estimator.space
    assert np.abs(registered[-1].motion[:3]).max() > 1.0  # mm: resampling matters
    series = np.zeros((*SHAPE, len(registered)))
    series[space.mask] = np.stack([volume.masked for volume in registered], axis=1)
    image = np.where(space.mask, labels(), 0)
    masker = NiftiLabelsMasker(labels_img=nib.Nifti1Image(image, AFFINE), resampling_target=None, standardize=None)
    expected = masker.fit_transform(nib.Nifti1Image(series, AFFINE))
    known = dict(zip([str(label) for label in np.unique(image) if label], expected.T, strict=True))
    parcels = space.parcels["blocks"]
    assert len(parcels.names) > 10
    for place, volume in enumerate(registered):
        means = parcels.means(volume.masked)
        np.testing.assert_allclose(means, [known[name][place] for name in parcels.names], rtol=1e-6)


def test_sums_by_place_are_numpys_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    places, values = rng.integers(0, 9, 4000), rng.standard_normal(4000).astype(np.float32)
    np.testing.assert_array_equal(sums_by_place(places, values, 12), np.bincount(places, values, 12))


def test_their_percent_signal_change_goes_the_way_of_regions(
    played: tuple[Estimator, list[RegisteredVolume], Path],
) -> None:
    estimator, registered, _ = played
    parcels = estimator.space.parcels["blocks"]
    signal = RegionSignal(
        RunTiming(t_r_s=T_R_S, phase_s=T_R_S / 2, high_pass_hz=0.008, hrf="glover"), "none", first_scales()
    )
    for index, volume in enumerate(registered):
        assert [*volume.parcels] == ["blocks"]
        found = volume.parcels["blocks"]
        expected = signal.add(index, parcels.means(volume.masked), np.zeros(6), np.zeros(6))
        assert tuple(found) == parcels.names
        np.testing.assert_allclose([*found.values()], expected, rtol=1e-5, atol=1e-6)
        assert found["24"] == pytest.approx(volume.regions["one"], abs=1e-6, nan_ok=True)
    assert any(abs(value) > 0.01 for value in registered[-1].parcels["blocks"].values())


def test_parcels_of_few_voxels_are_dropped_by_name(played: tuple[Estimator, list[RegisteredVolume], Path]) -> None:
    space = played[0].space
    counts = {label: int((labels()[space.mask] == label).sum()) for label in np.unique(labels()) if label}
    parcels = space.parcels["blocks"]
    assert counts[500] == 2
    assert parcels.names == tuple(str(label) for label, count in counts.items() if count >= 3)
    assert parcels.dropped == tuple(str(label) for label, count in counts.items() if count < 3)
    (fault,) = parcel_faults(space.parcels)
    assert fault.reason.startswith("estimate.parcels.blocks: expected 3 voxels or more of each parcel")
    assert fault.reason.endswith(f"got fewer of {', '.join(parcels.dropped)}")


def test_a_censored_volume_has_no_values(tmp_path: Path) -> None:
    settings = EstimateSettings(parcels={"blocks": written(tmp_path, labels())}, censor_fd_mm=1.0)
    estimator = Estimator(settings, "s")
    estimator.start_run(1, T_R_S)
    first, *_ = volumes(1)
    estimator.step(first)
    moved = ndimage.shift(head(), (0.5, 0.0, 0.0), order=3, mode="nearest").astype(np.float32)
    stamp = replace(first.stamp, volume=1)
    registered, _ = estimator.step(replace(first, stamp=stamp, data=moved))
    assert registered.fd_mm > 1.0
    values = registered.parcels["blocks"]
    assert tuple(values) == estimator.space.parcels["blocks"].names
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize(
    ("image", "affine", "reason"),
    [
        (labels()[:-1], AFFINE, r"expected the shape of the reference \(24, 26, 14\), got \(23, 26, 14\)"),
        (
            labels(),
            AFFINE + np.eye(4, k=3),
            r"the affine of the reference \[\[6\.0.*, got \[\[6\.0, 0\.0, 0\.0, 1\.0\]",
        ),
        (labels() + 0.5, AFFINE, r"expected labels 0, 1, 2 and on, got 3\.5"),
        (-labels(), AFFINE, r"expected labels 0, 1, 2 and on, got -3"),
        (np.where(labels() == 500, 500, 0), AFFINE, r"expected parcels of 3 voxels or more inside the mask, got none"),
    ],
)
def test_what_is_no_label_image_of_the_reference_is_refused(
    tmp_path: Path, image: np.ndarray, affine: np.ndarray, reason: str
) -> None:
    path = written(tmp_path, image.astype(np.float32), affine)
    with pytest.raises(SettingsError, match=rf"\$\.estimate\.parcels\.atlas: .*{reason}"):
        read_parcels("parcels.atlas", path, SHAPE, AFFINE, np.ones(SHAPE, bool))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"parcels\.atlas: expected a NIfTI label image"):
        read_parcels("parcels.atlas", tmp_path / "none.nii.gz", SHAPE, AFFINE, np.ones(SHAPE, bool))
