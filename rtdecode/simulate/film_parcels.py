"""Parcels of a brain that follows a film, without a scanner: for the statistics of stimulus match over many runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from rtdecode.simulate.seeds import generator

Float64 = NDArray[np.float64]
_SMOOTH_S = 2.5
"""Standard deviation of what the response makes of a film's quick changes, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmParcels:
    """How parcels answer to films. The same seed gives the same brain.

    Attributes
    ----------
    seed : int
    parcels : int
    t_r_s : float
        Seconds.
    rank : int
        Independent time courses of a film.
    correlation : float
        Mean over parcels of the correlation of prediction and measurement; its spread over parcels is half of it.
    shared : float
        Share of the noise's variance that lies in the signal's own spatial patterns: the hardest kind.
    autoregressive : float
        Correlation of noise from one volume to the next.
    """

    seed: int = 0
    parcels: int = 1000
    t_r_s: float = 1.49
    rank: int = 8
    correlation: float = 0.22
    shared: float = 0.5
    autoregressive: float = 0.4

    def predicted(self, film: int, volumes: int) -> Float64:
        """Return what the encoding model predicts of a film, (volumes, parcels), each column of unit variance."""
        rng = generator(self.seed, "film", film)
        smooth = _SMOOTH_S / self.t_r_s
        courses = ndimage.gaussian_filter1d(rng.standard_normal((volumes, self.rank)), smooth, axis=0)
        return _unit(_unit(courses) @ self._patterns())

    def measured(self, predicted: Float64, run: int, *, following: NDArray[np.bool_] | None = None) -> Float64:
        """Return what is measured, (volumes, parcels).

        Parameters
        ----------
        predicted : array of shape (volumes, parcels)
            Of the film that is shown.
        run : int
            Decides the noise.
        following : array of shape (volumes,), bool, or None
            Where the film is followed; None: throughout.
        """
        rng = generator(self.seed, "noise", run)
        mean = self.correlation
        gain = np.clip(generator(self.seed, "gain").normal(mean, mean / 2, self.parcels), 0.0, 0.9)
        shared = self._red(rng, (len(predicted), self.rank)) @ self._patterns()
        own = self._red(rng, predicted.shape)
        noise = np.sqrt(self.shared) * _unit(shared) + np.sqrt(1 - self.shared) * own
        here = 1.0 if following is None else following[:, None].astype(np.float64)
        return np.asarray(gain * predicted * here + np.sqrt(1 - gain**2) * noise)

    def _patterns(self) -> Float64:
        return generator(self.seed, "patterns").standard_normal((self.rank, self.parcels))

    def _red(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Float64:
        rho = self.autoregressive
        white = rng.standard_normal(shape)
        white[1:] *= np.sqrt(1 - rho**2)
        return np.asarray(signal.lfilter([1.0], [1.0, -rho], white, axis=0))


def _unit(values: Float64) -> Float64:
    return np.asarray((values - values.mean(0)) / values.std(0))
