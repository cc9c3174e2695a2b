"""Brain mask, framewise displacement, DVARS and temporal signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.quality import RunQuality, framewise_displacement
from rtdecode.session.doubts import mask_faults


def ellipsoid(shape: tuple[int, int, int], axes: tuple[float, float, float]) -> np.ndarray:
    grids = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / a for n, a in zip(shape, axes, strict=True)], indexing="ij")
    return np.sqrt(sum(grid**2 for grid in grids))


@pytest.mark.parametrize("shape", [(64, 64, 36), (64, 64, 10), (64, 64, 1)])
def test_mask_is_the_brain_without_scalp(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    brain_radius = ellipsoid(shape, (20, 24, 15))
    scalp_radius = ellipsoid(shape, (26, 30, 20))
    inside = brain_radius < 1
    head = np.where(inside, 1000.0 - 300 * (brain_radius < 0.4), 0)
    head += np.where((scalp_radius < 1) & (scalp_radius > 0.9), 400.0, 0)
    noisy = np.abs(head + 25 * rng.standard_normal(shape) + 1j * 25 * rng.standard_normal(shape))
    found = brain_mask(noisy.astype(np.float32))
    overlap = 2 * (found & inside).sum() / (found.sum() + inside.sum())
    assert overlap > 0.93
    assert not found[scalp_radius > 0.9].any()


def test_background_that_was_removed_is_believed() -> None:
    data = np.zeros((40, 20, 1), np.int16)
    data[5:30, 3:15, 0] = 1500
    data[5, 3, 0], data[6, 3, 0] = 60, 20
    expected = data >= 50
    np.testing.assert_array_equal(brain_mask(data), expected)


def test_no_head_is_an_error() -> None:
    with pytest.raises(ValueError, match="brain mask: expected a bright head"):
        brain_mask(np.zeros((20, 20, 20), np.float32))


def test_framewise_displacement_is_powers() -> None:
    before = np.array([0.1, 0.2, 0.3, 0.01, 0.02, 0.03])
    now = np.array([0.2, 0.0, 0.3, 0.01, 0.03, 0.01])
    assert framewise_displacement(now - before) == pytest.approx(0.1 + 0.2 + 50 * 0.01 + 50 * 0.02)


def test_dvars_and_tsnr_equal_their_definitions_at_every_volume() -> None:
    rng = np.random.default_rng(0)
    series = (1000 + 20 * rng.standard_normal((30, 200))).astype(np.float32)
    series[:, 0] = 500
    quality = RunQuality()
    for n, row in enumerate(series, start=1):
        dvars, tsnr = quality.add(row)
        so_far = series[:n].astype(np.float64)
        if n == 1:
            assert dvars == 0
        else:
            expected = 100 * np.sqrt(np.mean((so_far[-1] - so_far[-2]) ** 2)) / so_far.mean()
            assert dvars == pytest.approx(expected)
        if n < 8:
            assert np.isnan(tsnr)
        else:
            varying = so_far[:, 1:]
            assert tsnr == pytest.approx(np.median(varying.mean(0) / varying.std(0, ddof=1)))


def test_a_constant_run_has_no_tsnr() -> None:
    quality = RunQuality()
    values = [quality.add(np.full(5, 3.0, np.float32)) for _ in range(10)]
    assert np.isnan(values[-1][1])


@pytest.mark.parametrize(("first", "told"), [(14, None), (26, "60%"), (38, "0%")])
def test_a_mask_beside_the_brain_is_told(first: int, told: str | None) -> None:
    today = np.zeros((50, 40, 20), np.float32)
    today[10:32, 8:32, 2:18] = 100
    mask = np.zeros(today.shape, np.bool_)
    mask[first : first + 10, 15:25, 5:15] = True  # of ten slices along the first axis, those below 32 are brain
    found = list(mask_faults(mask, today))
    assert [fault.reason.rpartition("got ")[2] for fault in found] == ([] if told is None else [told])


def test_a_volume_without_a_head_holds_no_mask() -> None:
    (fault,) = mask_faults(np.ones((20, 20, 10), np.bool_), np.zeros((20, 20, 10), np.float32))
    assert fault.reason.endswith("4,000 voxels in the brain that is scanned, got 0%")
