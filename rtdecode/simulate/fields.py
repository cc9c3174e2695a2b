"""Smooth random functions of place that can be evaluated anywhere: random Fourier features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WAVES = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waves:
    """Waves of which Gaussian random fields are made: a field is one column of standard normal weights of them.

    Attributes
    ----------
    frequencies : array of shape (3, n)
        Radians per mm.
    amplitudes : array of shape (n,)
        Their squares sum to 1, which is then the variance of a field.
    """

    frequencies: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Weights that a field takes."""
        return 2 * self.amplitudes.size

    def __call__(self, places_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the waves at places of shape (v, 3): (v, size). Times weights, these are fields."""
        phase = places_mm @ self.frequencies
        return np.hstack([np.cos(phase) * self.amplitudes, np.sin(phase) * self.amplitudes])


def make_waves(rng: np.random.Generator, scales_mm: dict[float, float], n_waves: int = _WAVES) -> Waves:
    """Draw waves.

    Parameters
    ----------
    rng : Generator
    scales_mm : dict of float to float
        Share of the variance of each length scale l, whose covariance is ``exp(-d^2 / (2 l^2))``.
    n_waves : int
        Of each scale.
    """
    frequencies = [rng.standard_normal((3, n_waves)) / scale for scale in scales_mm]
    amplitudes = [np.full(n_waves, np.sqrt(share / n_waves)) for share in scales_mm.values()]
    return Waves(frequencies=np.hstack(frequencies), amplitudes=np.concatenate(amplitudes))
