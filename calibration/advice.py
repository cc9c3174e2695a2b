"""Whether more calibration trials are worth their time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calibration.standing import Outlook
from rtdecode.packs.participant_bundle import Projection

Advice = Literal["", "go on", "enough", "no signal"]

WORTH = 0.02
"""Percentile rank that the trials left must promise to be worth their time."""
CERTAIN = 0.01
"""p-value up to which there is signal, before calibration may be called enough."""
DOUBTFUL, TRIALS_TO_DOUBT = 0.05, 60
"""p-value above which, after so many trials, no signal was found."""
MINUTES = (5.0, 10.0, 30.0)
"""From now, for which the figure is projected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of how a calibration will go on.

    Attributes
    ----------
    trials : int or None
        That it will have in all.
    per_minute : float or None
        How fast they come, while runs last.
    """

    trials: int | None = None
    per_minute: float | None = None


class Pace:
    """How fast trials come, and how many there will be if the runs to come are as those that are over."""

    def __init__(self) -> None:
        self._onsets_s: dict[int, list[float]] = {}

    def trial(self, run: int, onset_s: float) -> None:
        """Take note of a trial."""
        self._onsets_s.setdefault(run, []).append(onset_s)

    def plan(self, runs: int | None) -> Plan:
        """Return what is known by now of a calibration of so many runs."""
        took_s = sum(max(own) - min(own) for own in self._onsets_s.values())
        gaps = sum(len(own) - 1 for own in self._onsets_s.values())
        over = [len(own) for own in list(self._onsets_s.values())[:-1]]
        return Plan(
            trials=round(runs * sum(over) / len(over)) if runs is not None and over else None,
            per_minute=60 * gaps / took_s if took_s > 0 else None,
        )


def advise(trials: int, p_value: float, outlook: Outlook | None, plan: Plan) -> tuple[Advice, str]:
    """Say whether to go on.

    Parameters
    ----------
    trials : int
        Collected.
    p_value : float
        Of the present `CurvePoint`.
    outlook : Outlook or None
        None: there are too few trials to tell.
    plan : Plan
    """
    if p_value > DOUBTFUL and trials >= TRIALS_TO_DOUBT:
        return "no signal", (
            f"after {trials} trials nothing is told apart above chance (p = {p_value:.2f}): look at the announced "
            "onsets, at the mask, and ask whether the participant sees the pictures"
        )
    more = _horizon(trials, plan)
    if outlook is None or more is None:
        return "", ""
    gain, (_, high) = outlook.gain(trials, more)
    most = max(gain, high)
    why = f"{more - trials} more trials would add about {100 * gain:.1f} points (at most {100 * most:.1f})"
    return ("enough" if p_value <= CERTAIN and most < WORTH else "go on"), why


def _horizon(trials: int, plan: Plan) -> int | None:
    """Trials that there will be if calibration goes on: as planned or, after that, for ten minutes."""
    if plan.trials is not None and plan.trials > trials:
        return plan.trials
    return None if plan.per_minute is None else trials + max(1, round(10 * plan.per_minute))


def project(trials: int, percentile: float, outlook: Outlook | None, plan: Plan) -> tuple[Projection, ...]:
    """Say what more time would bring, and what is left of the plan would, where it is known how fast trials come."""
    if outlook is None or plan.per_minute is None:
        return ()
    ahead = {trials + max(1, round(minutes * plan.per_minute)): minutes for minutes in MINUTES}
    if plan.trials is not None and plan.trials > trials:
        ahead.setdefault(plan.trials, (plan.trials - trials) / plan.per_minute)
    found = []
    for more, minutes in sorted(ahead.items()):
        gain, (low, high) = outlook.gain(trials, more)
        found.append(
            Projection(
                trials=more,
                minutes=minutes,
                percentile=min(1.0, percentile + gain),
                interval=(min(1.0, percentile + min(low, gain)), min(1.0, percentile + max(high, gain))),
            )
        )
    return tuple(found)
