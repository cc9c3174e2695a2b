"""Scores for feedback: what a participant is to be shown of regions, and of decoded trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire
from rtdecode.decode.score.pool import embedding_in
from rtdecode.decoded import Score
from rtdecode.packs import EnginePack
from rtdecode.records import BetaUpdate, RegisteredVolume, Stamp
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.blind import Blind
from rtdecode.statistics import cosines

_FEWEST_PAIRS = 5
"""Volumes that a correlation rests on at least."""


@dataclass(slots=True)
class _Trace:
    """What a score has been in a run: its baseline, and its smoothed value against it."""

    baseline: list[float] = field(default_factory=list)
    value: float | None = None
    at_s: float = 0.0

    def add(self, raw: float, time_s: float, settings: FeedbackSettings) -> None:
        """Take a score after the baseline; weigh the past by half for every half life, whatever came meanwhile."""
        value = self._against_baseline(raw, settings)
        if self.value is not None and settings.half_life_s > 0:
            kept = 0.5 ** ((time_s - self.at_s) / settings.half_life_s)
            value = kept * self.value + (1 - kept) * value
        self.value, self.at_s = value, time_s

    def _against_baseline(self, raw: float, settings: FeedbackSettings) -> float:
        if not self.baseline:
            return raw
        away = raw - float(np.mean(self.baseline))
        if settings.unit == "z":
            spread = float(np.std(self.baseline, ddof=1))
            return away / spread if spread > 0 else 0.0
        return away


class Feedback:
    """Follows a score of regions through the runs of a session; each run has a baseline of its own.

    A part of the fold over inputs. In a blinded session the sham goes the same way beside the score.

    Parameters
    ----------
    settings : FeedbackSettings
        With a score.
    blind : Blind, optional
    calibration_runs : int
        Whose values the percentiles of the display are of.
    """

    def __init__(self, settings: FeedbackSettings, blind: Blind | None = None, calibration_runs: int = 0) -> None:
        self._settings = settings
        self._blind = blind
        self._calibration_runs = calibration_runs
        self._calibrated: list[float] = []
        self._shown = 0 if blind is None else blind.shown
        self._run = 0
        self._begin(0)

    def _begin(self, run: int) -> None:
        percentiles, values = self._settings.percentiles, self._calibrated
        if percentiles is not None and run > self._calibration_runs and np.ptp(values or [0.0]) > 0:
            low, high = np.percentile(values, percentiles).tolist()
            self._settings = replace(self._settings, bounds=(low, high), percentiles=None)
        self._run = run
        self._times_s: list[float] = []
        self._values: list[tuple[float, ...]] = []
        self._traces = (_Trace(), _Trace())

    def change(self, settings: FeedbackSettings) -> None:
        """Go on with other settings; other regions want a baseline of their own."""
        others = settings.regions != self._settings.regions
        if self._settings.percentiles is None and settings.percentiles is not None:  # the calibration has told
            settings = replace(settings, bounds=self._settings.bounds, percentiles=None)
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
        others = () if self._blind is None else self._blind.regions
        values = tuple(volume.regions.get(name, math.nan) for name in (*self._settings.regions, *others))
        if volume.censored:
            return self._held("the head moved: the volume is left out")
        if not np.isfinite(values).all():
            return self._held("the volumes before do not predict this one")
        self._times_s.append(time_s)
        self._values.append(values)
        raw = self._scores(time_s, volume.stamp)
        if raw is None:
            return self._held(f"a correlation needs {_FEWEST_PAIRS} volumes")
        told = raw[self._shown]
        if len(self._traces[0].baseline) < self._settings.baseline_volumes:
            for trace, one in zip(self._traces, raw, strict=True):
                trace.baseline.append(one)
            self._seal(volume.stamp, raw)
            return self._told(state="baseline", raw=told)
        for trace, one in zip(self._traces, raw, strict=True):
            trace.add(one, time_s, self._settings)
        self._seal(volume.stamp, raw)
        if self._run <= self._calibration_runs:
            self._calibrated.append(self._traces[0].value or 0.0)
        if took_s > self._settings.deadline_s:
            return self._held(f"late: {took_s:.2f} s after the volume arrived", raw=told)
        return self._told(state="shown", raw=told)

    def skipped(self, run: int, reason: str) -> wire.Feedback:
        """Say that a volume has not come: what was shown before is held."""
        if run != self._run:
            self._begin(run)
        return self._held(reason)

    def _scores(self, time_s: float, stamp: Stamp) -> tuple[float, float] | None:
        """Return score and sham of the newest volume; both the score in an open session."""
        real = self._score(time_s, 0)
        if real is None or self._blind is None:
            return None if real is None else (real, real)
        n = len(self._settings.regions)
        other = self._score(time_s, n) if len(self._values[-1]) >= 2 * n else real
        return self._blind.pair((stamp.run, stamp.volume), real, real if other is None else other)

    def _score(self, time_s: float, first: int) -> float | None:
        """Return the newest value of the score, in percent or, of a connectivity, Fisher's z.

        `first` is the column of its first region.
        """
        newest = self._values[-1]
        match self._settings.score:
            case "difference":
                return newest[first] - newest[first + 1]
            case "connectivity":
                recent = [t > time_s - self._settings.window_s for t in self._times_s]
                chosen = np.array(self._values)[recent]
                return fisher_z(chosen[:, first], chosen[:, first + 1]) if len(chosen) >= _FEWEST_PAIRS else None
            case _:
                return newest[first]

    def _seal(self, stamp: Stamp, raw: tuple[float, float]) -> None:
        if self._blind is not None:
            place = f"run {stamp.run} volume {stamp.volume}"
            self._blind.keep(place, raw, (self._traces[0].value, self._traces[1].value))

    def _held(self, reason: str, *, raw: float | None = None) -> wire.Feedback:
        return self._told(state="held", raw=raw, invalid=reason)

    def _told(self, *, state: str, raw: float | None, invalid: str | None = None) -> wire.Feedback:
        told = _displayed(self._settings, self._traces[self._shown].value)
        return replace(told, state=state, raw=raw, final=True, invalid=invalid)


Targets = Callable[[str], NDArray[np.floating[Any]] | None]
"""Returns the tokens of a target by its name; None if there is none."""


class TrialFeedback:
    """Says what is to be shown of decoded trials, of the decode thread.

    Parameters
    ----------
    settings : FeedbackSettings
    blind : Blind, optional
    targets : callable, optional
        Gives the tokens that the score ``similarity`` compares with.

    Attributes
    ----------
    settings : FeedbackSettings
        May be changed.
    """

    def __init__(
        self, settings: FeedbackSettings, blind: Blind | None = None, targets: Targets = lambda _: None
    ) -> None:
        self.settings = settings
        self._blind = blind
        self._targets = targets
        self._counts: dict[int, int] = {}

    @property
    def withholds(self) -> bool:
        """Whether what was decoded must not be told, as it would tell the arm."""
        return self._blind is not None and self.settings.of_trials

    def of(self, beta: BetaUpdate, score: Score, tokens: NDArray[Any], *, took_s: float) -> wire.Feedback | None:
        """Say what is to be shown of a trial, if it is supported; None where the score is none of trials.

        Parameters
        ----------
        beta : BetaUpdate
        score : Score
        tokens : array
            That were decoded of it.
        took_s : float
            Since the trial's last volume arrived.
        """
        settings = self.settings
        if not settings.of_trials:
            return None
        value = self._value(score, tokens, settings.target)
        if value is None:
            reason = f"feedback.target {settings.target!r}: expected {self._expected(score)}"
            return replace(_displayed(settings, None), state="held", invalid=reason)
        if self._blind is not None:
            run = beta.stamp.run
            count = self._counts[run] = self._counts.get(run, -1) + 1
            other = self._value(score, tokens, self._blind.target)
            pair = self._blind.pair((run, count), value, value if other is None else other)
            self._blind.keep(f"run {run} trial {beta.event.trial} revision {beta.revision}", pair, pair)
            value = pair[self._blind.shown]
        told = replace(_displayed(settings, value), raw=value)
        if not score.supported:
            return replace(told, state="held", invalid=score.refused)
        if took_s > settings.deadline_s:
            return replace(told, state="held", invalid=f"late: {took_s:.2f} s after the volume arrived")
        return replace(told, state="shown")

    def _value(self, score: Score, tokens: NDArray[Any], target: str) -> float | None:
        match self.settings.score:
            case "two_alternative":
                pair = [score.probabilities.get(name) for name in (target, self.settings.foil)]
                both = sum(one for one in pair if one is not None)
                return None if pair[0] is None or pair[1] is None else pair[0] / both if both > 0 else 0.5
            case "retrieval":
                return score.posterior.get(target)
            case "similarity":
                wanted = self._targets(target)
                return None if wanted is None else float(cosines(tokens.reshape(1, -1), wanted.reshape(1, -1))[0, 0])
            case _:
                return score.probabilities.get(target)

    def _expected(self, score: Score) -> str:
        match self.settings.score:
            case "two_alternative" | "category":
                return f"a category of the decoder ({', '.join(score.probabilities)})"
            case "retrieval":
                return f"one of the {score.pool} candidates of the retrieval pool"
            case _:
                return "a picture of the file decode.pool"


def no_trial(settings: FeedbackSettings, reason: str) -> wire.Feedback | None:
    """Say that a trial has no score."""
    if not settings.of_trials:
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


def follow_feedback(
    settings: FeedbackSettings, blind: Blind | None = None, calibration_runs: int = 0
) -> Feedback | None:
    """Return what follows the score of the settings; None where they want none of regions."""
    return Feedback(settings, blind, calibration_runs) if settings.regions else None


def targets_of(pool: Path | None, pack: EnginePack) -> Targets:
    """Return what finds the tokens of pictures in a file of embeddings, each looked for once."""

    @cache
    def find(name: str) -> NDArray[np.floating[Any]] | None:
        return None if pool is None or not pool.is_file() else embedding_in(pool, pack, name)

    return find
