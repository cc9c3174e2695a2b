"""Regressors: haemodynamic response, trials, drift, motion.

Time is in seconds from the start of the acquisition of volume 0; a volume stands for the moment at which its
middle slice was acquired.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from rtdecode.records import TrialEvent

FloatArray = NDArray[np.float64]
Hrf = Literal["glover", "spm"]
Confounds = Literal["6", "24", "none"]

HRF_LENGTH_S = 32.0
ENTRY_ENERGY = 0.05
"""A trial is part of the model once this share of its regressor's energy has been seen."""
HEAD_RADIUS_MM = 50.0
HRF_STRETCHES: tuple[float, ...] = tuple(1.04 ** (i - 10) for i in range(20))
"""Library of 20 responses: h_i(t) = h(t / s_i) / s_i with s_i = 1.04^(i - 10); number 10 is the canonical one.

Stretching time by .68 to 1.42 moves Glover's peak from 3.4 to 7.1 s, the range of responses in visual cortex, and
widens it alike.
"""
# delay and dispersion of the response, delay and dispersion of the undershoot (s), ratio
_DOUBLE_GAMMA: dict[Hrf, tuple[float, float, float, float, float]] = {
    "glover": (6.0, 0.9, 12.0, 0.9, 0.48),
    "spm": (6.0, 1.0, 16.0, 1.0, 0.167),
}
_IMPULSE_S = 1e-3
_STILL_MM = 1e-12
_GROWTH = 256  # volumes


def cumulative_hrf(time_s: FloatArray, hrf: Hrf) -> FloatArray:
    """Integrate the haemodynamic response from its onset.

    The response is a difference of two gamma densities cut at 32 s with an integral of one (as in nilearn),
    so a long stimulus has a plateau of one.

    Parameters
    ----------
    time_s : array of any shape
        Seconds after onset; before it the integral is zero.
    hrf : {"glover", "spm"}

    Returns
    -------
    array of the shape of `time_s`

    References
    ----------
    G. H. Glover, "Deconvolution of impulse response in event-related BOLD fMRI", NeuroImage 9, 1999; K. J.
    Friston et al., "Event-related fMRI: characterizing differential responses", NeuroImage 7, 1998.
    """
    delay, width, late, late_width, ratio = _DOUBLE_GAMMA[hrf]

    def integral(t: FloatArray) -> FloatArray:
        return np.asarray(gammainc(delay / width, t / width) - ratio * gammainc(late / late_width, t / late_width))

    total = integral(np.array(HRF_LENGTH_S))
    return integral(np.clip(time_s, 0.0, HRF_LENGTH_S)) / total


def reference_moment(t_r_s: float, slice_times_s: FloatArray | None) -> float:
    """Return the moment within a volume that stands for all of it, seconds after its start.

    Parameters
    ----------
    t_r_s : float
        Repetition time, seconds.
    slice_times_s : array of shape (k,) or None
        After the start of the volume: the middle between first and last. None: half the repetition time.
    """
    if slice_times_s is None or len(slice_times_s) == 0:
        return t_r_s / 2
    return (float(np.min(slice_times_s)) + float(np.max(slice_times_s))) / 2


def trial_regressor(
    times_s: FloatArray, onset_s: float, duration_s: float, hrf: Hrf, stretch: float = 1.0
) -> FloatArray:
    """Convolve a stimulus of unit height with the haemodynamic response.

    Parameters
    ----------
    times_s : array of shape (t,)
    onset_s, duration_s : float
        Seconds; a duration of zero stands for one millisecond, scaled to unit area.
    hrf : {"glover", "spm"}
    stretch : float
        Factor on the response's time; see `HRF_STRETCHES`.

    Returns
    -------
    array of shape (t,), float64
    """
    length = max(duration_s, _IMPULSE_S)
    since = times_s - onset_s
    rise = cumulative_hrf(since / stretch, hrf) - cumulative_hrf((since - length) / stretch, hrf)
    return rise if duration_s > 0 else rise / _IMPULSE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTiming:
    """How a run is modelled in time.

    Attributes
    ----------
    t_r_s : float
        Repetition time, seconds.
    phase_s : float
        Moment within a volume that stands for it, seconds.
    high_pass_hz : float
    hrf : {"glover", "spm"}
    stretch : float
        Factor on the response's time; see `HRF_STRETCHES`.
    """

    t_r_s: float
    phase_s: float
    high_pass_hz: float
    hrf: Hrf
    stretch: float = 1.0

    def times_s(self, rows: NDArray[np.int64]) -> FloatArray:
        """Return the moments that stand for volumes, seconds."""
        return np.asarray(rows * self.t_r_s + self.phase_s)

    def energy(self, event: TrialEvent, lag_s: float = 0.0) -> float:
        """Sum of squares of a trial's regressor over all volumes that its response can reach."""
        return _energy(self, event.onset_s + lag_s, event.duration_s)

    def typical_energy(self, events: Sequence[TrialEvent]) -> float:
        """Median of `energy`."""
        return float(np.median([self.energy(event) for event in events]))


@functools.lru_cache(maxsize=4096)
def _energy(timing: RunTiming, onset_s: float, duration_s: float) -> float:
    first = math.floor((onset_s - timing.phase_s) / timing.t_r_s)
    last = math.ceil((onset_s + duration_s + timing.stretch * HRF_LENGTH_S - timing.phase_s) / timing.t_r_s)
    times = timing.times_s(np.arange(first, last + 1))
    regressor = trial_regressor(times, onset_s, duration_s, timing.hrf, timing.stretch)
    return float(regressor @ regressor)


def trial_regressors(
    timing: RunTiming, rows: NDArray[np.int64], events: Sequence[TrialEvent], lag_s: float
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Build the regressors of the trials that have entered the model.

    Parameters
    ----------
    timing : RunTiming
    rows : array of shape (t,), int64
        Indices of the volumes in use.
    events : sequence of TrialEvent
    lag_s : float
        How much later than announced the responses come, seconds.

    Returns
    -------
    regressors : array of shape (t, n), float64
    entered : array of shape (len(events),), bool
        Trials with `ENTRY_ENERGY` of their regressor's energy in `rows`; n of them.
    """
    regressors = Regressors(timing)
    every = regressors.of(rows, events, lag_s)
    entered = regressors.have_entered(every, events, lag_s)
    return every[:, entered], entered


class Regressors:
    """The regressors of trials as a run grows; each value is computed once.

    Parameters
    ----------
    timing : RunTiming
    """

    def __init__(self, timing: RunTiming) -> None:
        self._timing = timing
        self._known: dict[tuple[float, float], FloatArray] = {}
        self._energy: dict[tuple[float, float], float] = {}

    def have_entered(self, every: FloatArray, events: Sequence[TrialEvent], lag_s: float) -> NDArray[np.bool_]:
        """Say which trials have `ENTRY_ENERGY` of their regressor's energy in `every`, shape (t, len(events))."""
        for event in events:
            place = event.onset_s + lag_s, event.duration_s
            if place not in self._energy:
                self._energy[place] = self._timing.energy(event, lag_s)
        energy = np.array([self._energy[event.onset_s + lag_s, event.duration_s] for event in events])
        return np.asarray(np.einsum("ij,ij->j", every, every) >= ENTRY_ENERGY * energy)

    def of(self, rows: NDArray[np.int64], events: Sequence[TrialEvent], lag_s: float) -> FloatArray:
        """Return the regressors of all trials, entered or not, shape (t, len(events)); see `trial_regressors`."""
        every = np.zeros((len(rows), len(events)))
        for column, event in enumerate(events):
            every[:, column] = self._one(int(rows[-1]) + 1, event.onset_s + lag_s, event.duration_s)[rows]
        return every

    def _one(self, length: int, onset_s: float, duration_s: float) -> FloatArray:
        known = self._known.get((onset_s, duration_s))
        if known is None or len(known) < length:
            size = max(length, _GROWTH if known is None else 2 * len(known))
            times = self._timing.times_s(np.arange(size))
            known = trial_regressor(times, onset_s, duration_s, self._timing.hrf, self._timing.stretch)
            self._known[onset_s, duration_s] = known
        return known


def drift_cosines(indices: NDArray[np.int64], length: int, t_r_s: float, high_pass_hz: float) -> FloatArray:
    """Discrete cosines up to a frequency, over the volumes so far.

    Parameters
    ----------
    indices : array of shape (t,), int64
        Volumes in use.
    length : int
        Volumes so far, missing ones included.
    t_r_s : float
    high_pass_hz : float

    Returns
    -------
    array of shape (t, k), float64
        Column k - 1 has k half periods over `length` volumes and an amplitude of one.
    """
    count = min(length - 1, math.floor(2 * length * high_pass_hz * t_r_s))
    k = np.arange(1, count + 1)
    return np.asarray(np.cos(np.pi / length * (indices[:, None] + 0.5) * k))


def scaled_drift(timing: RunTiming, rows: NDArray[np.int64]) -> FloatArray:
    """Cosines over the volumes so far, each times the deviation that a random walk of unit rate gives it.

    The cosine series of a Brownian path over a length L has independent coefficients of variance 2 L / (pi
    k)^2, and the path is the same process whatever its length: one rate (variance per second) holds
    throughout a growing run.

    Parameters
    ----------
    timing : RunTiming
    rows : array of shape (t,), int64

    Returns
    -------
    array of shape (t, k), float64
    """
    length = int(rows[-1]) + 1
    cosines = drift_cosines(rows, length, timing.t_r_s, timing.high_pass_hz)
    k = np.arange(1, cosines.shape[1] + 1)
    return np.asarray(cosines * np.sqrt(2.0 * length * timing.t_r_s) / (np.pi * k))


def motion_regressors(
    motion: FloatArray | Sequence[FloatArray], changes: FloatArray | Sequence[FloatArray], kind: Confounds
) -> FloatArray:
    """Build the motion regressors, centred; rotations become mm on a sphere of 50 mm.

    Parameters
    ----------
    motion : array of shape (t, 6), float64
        Translations in mm, rotations in radians.
    changes : array of shape (t, 6), float64
        Difference from the volume before.
    kind : {"6", "24", "none"}
        The six; these, their changes, and the squares of both; or none.

    Returns
    -------
    array of shape (t, m), float64
        Columns that never vary are left out.

    References
    ----------
    K. J. Friston et al., "Movement-related effects in fMRI time-series", Magnetic Resonance in Medicine 35, 1996.
    """
    if kind == "none":
        return np.zeros((len(motion), 0))
    columns = _millimetres(motion)
    if kind == "24":
        change = _millimetres(changes)
        columns = np.hstack([columns, change, columns**2, change**2])
    columns = columns - columns.mean(0)
    return np.asarray(columns[:, np.abs(columns).max(0) > _STILL_MM])


def _millimetres(motion: FloatArray | Sequence[FloatArray]) -> FloatArray:
    return np.array(motion, np.float64) * ([1.0] * 3 + [HEAD_RADIUS_MM] * 3)
