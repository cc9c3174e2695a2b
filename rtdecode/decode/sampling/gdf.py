"""Stable Cascade's sampler (gdf): DDPM steps on a cosine schedule that can be shifted, with rescaled guidance.

The network is told the noise level r as sines of 10,000 r, so that the last bit of r shows in a picture. The schedule
therefore follows the single-precision operations of the published code in their order; torch's arc cosine, which rounds
one way on one machine and another way on the next, is here the nearest single.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.sampling.edm import guide

Float32 = NDArray[np.float32]
Predict = Callable[[Any, np.float32], Any]
"""Noisy latent and the network's noise level r to the (guided) noise in it."""

_OFFSET = np.float32(0.008)
_LEAST, _MOST = np.float32(1e-4), np.float32(0.9999)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GdfSchedule:
    """Noise levels of a path, the first the noisiest.

    Attributes
    ----------
    log_snr : ndarray of shape (steps + 1,), float32
        Of signal power over noise power.
    r : ndarray of shape (steps + 1,), float32
        What the network is told.
    """

    log_snr: Float32
    r: Float32

    @property
    def steps(self) -> int:
        """Network calls."""
        return len(self.r) - 1

    @property
    def signal(self) -> Float32:
        """Factor of the clean latent at each level."""
        return np.asarray(np.sqrt(_sigmoid(self.log_snr)))

    @property
    def noise(self) -> Float32:
        """Factor of the noise at each level."""
        return np.asarray(np.sqrt(np.float32(1) - _sigmoid(self.log_snr)))


def gdf_schedule(steps: int, *, start: float = 1.0, end: float = 0.0, shift: float = 1.0) -> GdfSchedule:
    """Tabulate a path.

    Parameters
    ----------
    steps : int
    start, end : float
        Of the path; 1 is noise, 0 a clean latent.
    shift : float
        Above 1 there is more noise along the path, for larger latents.

    Raises
    ------
    ValueError
        There is no step.
    """
    if steps < 1:
        raise ValueError(f"steps of Stable Cascade: expected at least 1, got {steps}")
    limits = _log_snr(np.array([1, 0], np.float32))
    log_snr = _log_snr(_even(start, end, steps + 1))
    if shift != 1:
        log_snr = log_snr + np.float32(2 * math.log(1 / shift))
    log_snr = np.clip(log_snr, limits[0], limits[1])
    angle = _rounded(np.arccos, np.sqrt(_sigmoid(log_snr) * _least_variance()))
    r = angle / np.float32(math.pi / 2) * (np.float32(1) + _OFFSET) - _OFFSET
    return GdfSchedule(log_snr=log_snr, r=r)


def diffused(clean: Any, noise: Any, time: float) -> Any:
    """Add noise to a clean latent up to a time of the path, without shift."""
    at = gdf_schedule(1, start=time)
    return clean * float(at.signal[0]) + noise * float(at.noise[0])


def rescaled_guidance(conditional: Any, unconditional: Any, scale: float, rho: float) -> Any:
    """Guide, and bring the spread of the whole array back towards that of the conditional prediction.

    As published the spread is that of all samples together: what a sample becomes depends on the others of its batch.

    Parameters
    ----------
    conditional, unconditional : array
    scale : float
        Of the guidance.
    rho : float
        Share of the rescaled prediction.
    """
    guided = guide(conditional, unconditional, scale)
    factor = conditional.reshape(-1).std(**_unbiased(conditional)) / (
        guided.reshape(-1).std(**_unbiased(guided)) + 1e-9
    )
    return guided * factor * rho + guided * (1 - rho)


def sample_gdf(predict: Predict, x: Any, noise: Sequence[Any], schedule: GdfSchedule) -> Any:
    """Sample along a schedule with fresh noise at every step.

    Parameters
    ----------
    predict : callable
    x : array
        Latent at the first level.
    noise : sequence of array
        Standard normal, of the shape of `x`, one for each step; that of the last is not used.
    schedule : GdfSchedule

    Returns
    -------
    array
        Clean latent of the last prediction, as published, not the latent that the last step led to.
    """
    one = np.float32(1)
    signal, level = schedule.signal, schedule.noise
    clean = x
    for i in range(schedule.steps):
        found = predict(x, schedule.r[i])
        clean = (x - found * float(level[i])) * float(one / signal[i])
        if i + 1 < schedule.steps:
            fresh = np.sqrt(level[i + 1] ** 2 / level[i] ** 2) * np.sqrt(one - signal[i] ** 2 / signal[i + 1] ** 2)
            kept = np.sqrt(level[i + 1] ** 2 - fresh**2)
            x = clean * float(signal[i + 1]) + found * float(kept) + noise[i] * float(fresh)
    return clean


def sample_gdf_student(predict: Predict, x: Any, noise: Sequence[Any], schedule: GdfSchedule) -> Any:
    """Sample a student of one step in several: from each clean latent up to the next level with fresh noise.

    Multistep consistency sampling (Song et al. 2023, algorithm 1); parameters are those of `sample_gdf`.
    """
    clean = x
    for i in range(schedule.steps):
        clean = (x - predict(x, schedule.r[i]) * float(schedule.noise[i])) * float(np.float32(1) / schedule.signal[i])
        if i + 1 < schedule.steps:
            x = clean * float(schedule.signal[i + 1]) + noise[i] * float(schedule.noise[i + 1])
    return clean


def _unbiased(array: Any) -> dict[str, Any]:
    return {"ddof": 1} if isinstance(array, np.ndarray) else {"correction": 1}


def _even(start: float, end: float, n: int) -> Float32:
    """Evenly spaced as torch does it: from the nearer end, one rounding."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(n - 1))
    index = np.arange(n)
    return np.where(index < n // 2, first + step * index, last - step * (n - 1 - index)).astype(np.float32)


def _rounded(function: Callable[[NDArray[np.float64]], NDArray[np.float64]], values: Any) -> Float32:
    return np.asarray(function(np.asarray(values, np.float64)), np.float32)


def _least_variance() -> np.float32:
    angle = _OFFSET / (np.float32(1) + _OFFSET) * np.float32(math.pi) * np.float32(0.5)
    root = np.float32(_rounded(np.cos, angle))
    return np.float32(root * root)


def _log_snr(times: Float32) -> Float32:
    angle = (_OFFSET + times) / (np.float32(1) + _OFFSET) * np.float32(math.pi) * np.float32(0.5)
    root = np.clip(_rounded(np.cos, angle), 0, 1)
    variance = np.clip(root * root / _least_variance(), _LEAST, _MOST)
    return _rounded(np.log, variance / (np.float32(1) - variance))


def _sigmoid(values: Float32) -> Float32:
    return np.float32(1) / (np.float32(1) + _rounded(np.exp, -values))
