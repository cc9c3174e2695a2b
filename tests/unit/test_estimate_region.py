"""Region signal against the prediction of a naive batch fit of all volumes before."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.errors import SettingsError
from rtdecode.estimate.design import RunTiming
from rtdecode.estimate.glm import Scales
from rtdecode.estimate.region import Regions, RegionSignal

T_R_S = 1.5
TIMING = RunTiming(t_r_s=T_R_S, phase_s=0.75, high_pass_hz=0.01, hrf="glover")
SCALES = Scales(trial=1.0, mean=1.0, drift_per_s=0.01, motion_per_mm2=1.0, rho=0.3)


def naive(rows: np.ndarray, series: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Fit level, drift and motion to all volumes but the last, predict it, and subtract."""
    length = rows[-1] + 1
    count = int(2 * length * T_R_S * 0.01)
    drift = [np.cos(np.pi * k * (rows + 0.5) / length) for k in range(1, count + 1)]
    walk = [2 * length * T_R_S / (np.pi * k) ** 2 for k in range(1, count + 1)]
    moved = motion * [1, 1, 1, 50, 50, 50]
    design = np.column_stack([np.ones(len(rows)), *drift, moved - moved.mean(0)])
    precision = np.array([0.0] + [1 / (0.01 * w) for w in walk] + [1.0] * 6)
    percent = 100 * (series / series.mean(0) - 1)
    stacked = np.vstack([design[:-1], np.diag(np.sqrt(precision))])
    data = np.vstack([percent[:-1], np.zeros((len(precision), series.shape[1]))])
    return percent[-1] - design[-1] @ np.linalg.lstsq(stacked, data, rcond=None)[0]


def test_every_volume_equals_a_batch_prediction() -> None:
    rng = np.random.default_rng(0)
    signal = RegionSignal(TIMING, "6", SCALES)
    rows, series, motion = [], [], []
    for index in range(80):
        if index in (17, 18, 40):
            continue
        rows.append(index)
        series.append(700 + rng.standard_normal(3) * 5 + 0.2 * index)
        motion.append(rng.standard_normal(6) * [0.1, 0.1, 0.1, 0.002, 0.002, 0.002])
        found = signal.add(index, series[-1], motion[-1], np.zeros(6))
        if index == 0:
            assert np.isnan(found).all()
        else:
            expected = naive(np.array(rows), np.array(series), np.array(motion))
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_response_is_seen_and_drift_is_not() -> None:
    """A step of one percent after a minute of slow drift."""
    rng = np.random.default_rng(1)
    signal = RegionSignal(TIMING, "none", SCALES)
    found = []
    for index in range(60):
        value = 1000 * (1 + 0.0001 * index + (0.01 if 45 <= index < 52 else 0.0)) + 0.5 * rng.standard_normal()
        found.append(signal.add(index, np.array([value]), np.zeros(6), np.zeros(6))[0])
    assert np.abs(found[20:45]).max() < 0.3
    assert min(found[45:48]) > 0.7


def test_regions_are_means_inside_the_mask() -> None:
    mask = np.zeros((3, 3, 2), bool)
    mask[:2] = True
    left = np.zeros_like(mask)
    left[1:] = True

    def signal() -> RegionSignal:
        return RegionSignal(TIMING, "none", SCALES)

    alone, regions = signal(), Regions({"left": left}, mask, signal())
    for index in range(5):
        masked = np.random.default_rng(index).uniform(500, 600, 12).astype(np.float32)
        volume = np.zeros(mask.shape)
        volume[mask] = masked
        (expected,) = alone.add(index, np.array([volume[left & mask].mean()]), np.zeros(6), np.zeros(6))
        found = regions.add(index, masked, np.zeros(6), np.zeros(6))
        assert found.regions == {"left": pytest.approx(expected, abs=1e-6, nan_ok=True)}
    with pytest.raises(SettingsError, match=r"regions\.far: expected voxels inside the mask"):
        Regions({"far": ~mask}, mask, signal())
