"""Drift of the betas against plain statistics over trials."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.drift import DriftMonitor

RNG = np.random.default_rng(0)


def adapter(voxels: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Adapter:
    nothing = np.zeros((len(voxels), 1), np.float32)
    return Adapter(
        voxels=voxels,
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=nothing,
        intercept=nothing[0],
        basis=nothing[:1],
        token_mean=nothing[0],
        r2=nothing[0],
        group_r2=nothing[0],
    )


def test_shift_and_spread_are_those_of_standardised_betas() -> None:
    voxels = np.array([1, 4, 5, 9])
    mean, scale = RNG.normal(size=4), RNG.uniform(0.5, 2, 4)
    betas = RNG.normal(1.0, 2.0, (7, 12)).astype(np.float32)
    betas[3, 4] = np.nan
    monitor = DriftMonitor(adapter(voxels, mean, scale))
    assert monitor.drift is None
    monitor.add(betas[0])
    assert monitor.drift is None
    for beta in betas[1:]:
        monitor.add(beta)
    z = (betas[:, voxels] - mean.astype(np.float32)) / scale.astype(np.float32)
    z[3, 1] = 0
    assert monitor.drift is not None
    assert monitor.drift.trials == 7
    assert monitor.drift.shift == pytest.approx(np.median(np.abs(z.mean(0))), rel=1e-5)
    assert monitor.drift.spread == pytest.approx(np.median(z.std(0, ddof=1)), rel=1e-5)


def test_betas_of_the_calibration_have_not_drifted() -> None:
    n, v = 400, 500
    mean, scale = RNG.normal(size=v), RNG.uniform(0.5, 2, v)
    monitor = DriftMonitor(adapter(np.arange(v), mean, scale))
    for _ in range(n):
        monitor.add((mean + scale * RNG.normal(size=v)).astype(np.float32))
    assert monitor.drift is not None
    assert monitor.drift.shift == pytest.approx(0.674 / np.sqrt(n), rel=0.2)
    assert monitor.drift.spread == pytest.approx(1.0, rel=0.05)
