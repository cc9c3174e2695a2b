"""What was shown as feedback, and whether it was regulated: within a session, and from one session to the next."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rtdecode import client as wire
from rtdecode.session.entries import read_outputs
from rtdecode.session.recording import PROTOCOL

_BLOCKS = 5
"""A run is cut into so many blocks: what follows each other within one is not independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRun:
    """The feedback of one run, in the order in which it was sent.

    Attributes
    ----------
    session : str
        Name of the session folder.
    run : int
    states : tuple of str
        ``baseline``, ``shown`` or ``held``.
    values : tuple of float or None
        Against the baseline, smoothed.
    levels : tuple of float or None
        Place between the bounds of the display, 0 to 1.
    """

    session: str
    run: int
    states: tuple[str, ...]
    values: tuple[float | None, ...]
    levels: tuple[float | None, ...]

    def count(self, state: str) -> int:
        """How often feedback was in a state."""
        return self.states.count(state)

    def shown(self) -> list[float]:
        """Values that were shown, as they came; not those that were held."""
        together = zip(self.states, self.values, strict=True)
        return [value for state, value in together if state == "shown" and value is not None]

    def mean(self) -> tuple[float, tuple[float, float]] | None:
        """Mean value shown, and its 95 % interval: Student's t over five blocks of the run.

        None where fewer values than blocks were shown.
        """
        shown = self.shown()
        if len(shown) < 2 * _BLOCKS:
            return None
        blocks = np.array([block.mean() for block in np.array_split(np.array(shown), _BLOCKS)])
        away = float(stats.t.ppf(0.975, _BLOCKS - 1) * stats.sem(blocks))
        value = float(np.mean(shown))
        return value, (value - away, value + away)


def feedback_runs(folder: Path) -> list[FeedbackRun]:
    """Read what a session showed, run by run, from the journal of what was published; empty without either.

    Raises
    ------
    JournalError
        The journal cannot be read.
    """
    found: dict[int, list[wire.Feedback]] = {}
    journal = folder / "journal" / "outputs.journal"
    for _, entry in read_outputs(journal) if journal.is_file() else ():
        if entry.topic == "feedback":
            message = wire.unpack(entry.topic.encode(), entry.payload)
            if isinstance(message, wire.Feedback):
                found.setdefault(message.run or 0, []).append(message)
    return [
        FeedbackRun(
            session=folder.name,
            run=run,
            states=tuple(one.state for one in told),
            values=tuple(one.value for one in told),
            levels=tuple(one.level for one in told),
        )
        for run, told in sorted(found.items())
    ]


def feedback_rule(folder: Path) -> str:
    """Tell the section ``[feedback]`` of a session's settings or protocol in one line; empty without one."""
    owner = folder / PROTOCOL if (folder / PROTOCOL).is_file() else folder / "settings.toml"
    if not owner.is_file():
        return ""
    raw: dict[str, Any] = tomllib.loads(owner.read_text(encoding="utf-8")).get("feedback", {})
    if raw.get("score", "none") == "none":
        return ""
    return ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {value}" for name, value in raw.items())


def success(runs: Sequence[FeedbackRun]) -> str:
    """Tell in words how much was regulated in each run."""
    told = []
    for run in runs:
        mean = run.mean()
        if mean is not None:
            value, (low, high) = mean
            told.append(f"{run.session} run {run.run}: mean value shown {value:.3g} [{low:.3g}, {high:.3g}]")
    return "; ".join(told)
