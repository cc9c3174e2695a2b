"""Scores for feedback: what a participant is to be shown of regions, and of decoded trials."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire
from rtdecode.decoded import Score
from rtdecode.records import RegisteredVolume
from rtdecode.score_settings import FeedbackSettings

_FEWEST_PAIRS = 5
"""Volumes that a correlation rests on at least."""


class Feedback:
    """Follows a score of regions through the runs of a session; each run has a baseline of its own.

    A part of the fold over inputs.

    Parameters
    ----------
    settings : FeedbackSettings
        With a score.
    """

    def __init__(self, settings: FeedbackSettings) -> None:
        self._settings = settings
        self._run = 0
        self._begin(0)

    def _begin(self, run: int) -> None:
        self._run = run
        self._times_s: list[float] = []
        self._values: list[tuple[float, ...]] = []
        self._baseline: list[float] = []
        self._smoothed: float | None = None
        self._smoothed_s = 0.0

    def change(self, settings: FeedbackSettings) -> None:
        """Go on with other settings; other regions want a baseline of their own."""
        others = settings.regions != self._settings.regions
        self._settings = settings
        if others:
            self._begin(self._run)

    def add(self, volume: RegisteredVolume, *, took_s: float) -> wire.Feedback:
        """Take a volume, and say what is to be shown.

        Parameters
        ----------
        volume : RegisteredVolume
        took_s : float
            Since the volume arrived; later than the deadline it is not shown, though it counts for later ones.
        """
        if volume.stamp.run != self._run:
            self._begin(volume.stamp.run)
        time_s = volume.stamp.volume * (volume.t_r_s or 0.0)
        values = tuple(volume.regions.get(name, math.nan) for name in self._settings.regions)
        if volume.censored:
            return self._held("the head moved: the volume is left out")
        if not np.isfinite(values).all():
            return self._held("the volumes before do not predict this one")
        self._times_s.append(time_s)
        self._values.append(values)
        raw = self._score(time_s)
        if raw is None:
            return self._held(f"a correlation needs {_FEWEST_PAIRS} volumes")
        if len(self._baseline) < self._settings.baseline_volumes:
            self._baseline.append(raw)
            return self._told(state="baseline", raw=raw)
        self._smooth(self._against_baseline(raw), time_s)
        if took_s > self._settings.deadline_s:
            return self._held(f"late: {took_s:.2f} s after the volume arrived", raw=raw)
        return self._told(state="shown", raw=raw)

    def skipped(self, run: int, reason: str) -> wire.Feedback:
        """Say that a volume has not come: what was shown before is held."""
        if run != self._run:
            self._begin(run)
        return self._held(reason)

    def _score(self, time_s: float) -> float | None:
        """Return the newest value of the score, in percent or, of a connectivity, Fisher's z."""
        newest = self._values[-1]
        match self._settings.score:
            case "difference":
                return newest[0] - newest[1]
            case "connectivity":
                recent = [t > time_s - self._settings.window_s for t in self._times_s]
                chosen = np.array(self._values)[recent]
                return fisher_z(chosen[:, 0], chosen[:, 1]) if len(chosen) >= _FEWEST_PAIRS else None
            case _:
                return newest[0]

    def _against_baseline(self, raw: float) -> float:
        if not self._baseline:
            return raw
        away = raw - float(np.mean(self._baseline))
        if self._settings.unit == "z":
            spread = float(np.std(self._baseline, ddof=1))
            return away / spread if spread > 0 else 0.0
        return away

    def _smooth(self, value: float, time_s: float) -> None:
        """Weigh the past by half for every half life that went by, volumes that did not come included."""
        half_life_s = self._settings.half_life_s
        if self._smoothed is None or half_life_s == 0:
            self._smoothed = value
        else:
            kept = 0.5 ** ((time_s - self._smoothed_s) / half_life_s)
            self._smoothed = kept * self._smoothed + (1 - kept) * value
        self._smoothed_s = time_s

    def _held(self, reason: str, *, raw: float | None = None) -> wire.Feedback:
        return self._told(state="held", raw=raw, invalid=reason)

    def _told(self, *, state: str, raw: float | None, invalid: str | None = None) -> wire.Feedback:
        told = _displayed(self._settings, self._smoothed)
        return replace(told, state=state, raw=raw, final=True, invalid=invalid)


def of_trial(settings: FeedbackSettings, score: Score, *, took_s: float) -> wire.Feedback | None:
    """Say what is to be shown of a decoded trial: its target's probability if it is supported; None without a target.

    Parameters
    ----------
    settings : FeedbackSettings
    score : Score
    took_s : float
        Since the trial's last volume arrived.
    """
    if settings.score != "category":
        return None
    probability = score.probabilities.get(settings.target)
    if probability is None:
        known = ", ".join(score.probabilities)
        reason = f"feedback.target {settings.target!r}: expected a category of the decoder ({known})"
        return replace(_displayed(settings, None), state="held", invalid=reason)
    told = replace(_displayed(settings, probability), raw=probability)
    if not score.supported:
        return replace(told, state="held", invalid=score.refused)
    if took_s > settings.deadline_s:
        return replace(told, state="held", invalid=f"late: {took_s:.2f} s after the volume arrived")
    return replace(told, state="shown")


def no_trial(settings: FeedbackSettings, reason: str) -> wire.Feedback | None:
    """Say that a trial has no score."""
    if settings.score != "category":
        return None
    return replace(_displayed(settings, None), state="held", final=True, invalid=reason)


def _displayed(settings: FeedbackSettings, value: float | None) -> wire.Feedback:
    low, high = settings.display()
    level = None if value is None else min(max((value - low) / (high - low), 0.0), 1.0)
    return wire.Feedback(
        score=settings.score,
        regions=settings.regions,
        target=settings.target,
        unit=settings.unit,
        value=value,
        level=level,
        step=None if level is None else round(level * settings.steps),
        steps=settings.steps,
        threshold=settings.threshold,
        reached=None if value is None or settings.threshold is None else value >= settings.threshold,
    )


def fisher_z(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the inverse hyperbolic tangent of the correlation of two series (t,); 0 where one does not vary."""
    if not (np.ptp(one) > 0 and np.ptp(other) > 0):
        return 0.0
    return float(np.arctanh(np.clip(np.corrcoef(one, other)[0, 1], -0.999999, 0.999999)))


def follow_feedback(settings: FeedbackSettings) -> Feedback | None:
    """Return what follows the score of the settings; None where they want none of regions."""
    return Feedback(settings) if settings.regions else None
