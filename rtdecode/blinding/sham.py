"""Scores that look like a participant's own and do not depend on what the brain does now.

Every kind is asked once for each score that there is, and always has an answer, so that a sham is there whenever the
score is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from rtdecode.protocol_file import ShamPlan

Place = tuple[int, int]
"""Run and volume, or run and number of the trial's score in it."""
_FEWEST = 8
"""Scores of a run that are scrambled at least."""


class Sham(Protocol):
    """Makes the sham of each score."""

    def next(self, place: Place, real: float, other: float) -> float:
        """Return the sham of a score.

        Parameters
        ----------
        place : tuple of int
            Later than any before.
        real : float
            The score.
        other : float
            The same score of other regions, or another target.
        """
        ...


class RandomWalk:
    """A walk of first order with mean, variance and autocorrelation of the scores so far.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._n = 0
        self._mean = self._squares = self._products = 0.0
        self._last: float | None = None
        self._standard = float(self._rng.standard_normal())

    def next(self, place: Place, real: float, other: float) -> float:  # noqa: ARG002 - as every sham is asked
        """Return the next step; see `Sham.next`."""
        self._n += 1
        before = self._mean
        self._mean += (real - before) / self._n
        self._squares += (real - before) * (real - self._mean)
        if self._last is not None:
            self._products += (real - self._mean) * (self._last - self._mean)
        self._last = real
        deviation = math.sqrt(self._squares / max(self._n - 1, 1))
        rho = float(np.clip(self._products / self._squares, 0.0, 0.99)) if self._squares > 0 else 0.0
        drawn = float(self._rng.standard_normal())
        self._standard = rho * self._standard + math.sqrt(1 - rho * rho) * drawn
        return self._mean + deviation * self._standard


class PhaseScrambled:
    """The scores of the run before with random phases: the same spectrum, mean and variance.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._walk = RandomWalk(seed + 1)
        self._run = 0
        self._own: list[float] = []
        self._surrogate = np.zeros(0)
        self._index = 0

    def next(self, place: Place, real: float, other: float) -> float:
        """Return the next one; see `Sham.next`."""
        if place[0] != self._run:
            if len(self._own) >= _FEWEST:
                self._surrogate = scrambled(np.array(self._own), self._rng)
            self._run, self._own, self._index = place[0], [], 0
        walk = self._walk.next(place, real, other)
        self._own.append(real)
        if not len(self._surrogate):
            return walk
        value = float(self._surrogate[self._index % len(self._surrogate)])
        self._index += 1
        return value


def scrambled(
    series: np.ndarray[tuple[int], np.dtype[np.float64]], rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a series (t,) of random phases and the same amplitudes: mean, variance and autocorrelation stay."""
    spectrum = np.fft.rfft(series)
    free = slice(1, -1 if len(series) % 2 == 0 else None)  # mean, and at even lengths the highest frequency, are real
    phases = rng.uniform(0, 2 * np.pi, len(spectrum))
    spectrum[free] = np.abs(spectrum[free]) * np.exp(1j * phases[free])
    return np.fft.irfft(spectrum, len(series))


class TimeShifted:
    """The own score of some time before.

    Parameters
    ----------
    by : int
        How many scores before.
    seed : int
    """

    def __init__(self, by: int, seed: int) -> None:
        self._by = by
        self._walk = RandomWalk(seed)
        self._own: list[float] = []

    def next(self, place: Place, real: float, other: float) -> float:
        """Return the earlier one; see `Sham.next`."""
        walk = self._walk.next(place, real, other)
        self._own.append(real)
        return self._own[-1 - self._by] if len(self._own) > self._by else walk


class Yoked:
    """What another participant was shown at the same place.

    Parameters
    ----------
    donor : mapping of tuple of int to float
        By place.
    seed : int
    """

    def __init__(self, donor: Mapping[Place, float], seed: int) -> None:
        self._donor = donor
        self._walk = RandomWalk(seed)

    def next(self, place: Place, real: float, other: float) -> float:
        """Return the donor's; see `Sham.next`."""
        walk = self._walk.next(place, real, other)
        return self._donor.get(place, walk)


class Other:
    """The score of other regions, or of another target."""

    def next(self, place: Place, real: float, other: float) -> float:  # noqa: ARG002 - as every sham is asked
        """Return it; see `Sham.next`."""
        return other


def sham_of(plan: ShamPlan, seed: int, t_r_s: float, donor: Mapping[Place, float]) -> Sham:
    """Return the sham of a protocol.

    Parameters
    ----------
    plan : ShamPlan
    seed : int
    t_r_s : float
        Time between two scores, seconds.
    donor : mapping of tuple of int to float
        What the donor was shown, for `Yoked`.
    """
    match plan.kind:
        case "yoked":
            return Yoked(donor, seed)
        case "time_shifted":
            return TimeShifted(max(round(plan.shift_s / t_r_s), 1), seed)
        case "phase_scrambled":
            return PhaseScrambled(seed)
        case "random_walk":
            return RandomWalk(seed)
        case "other":
            return Other()
