"""The trials of a session: which have been announced, and when each is due for an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rtdecode.errors import ProtocolError
from rtdecode.records import TrialEvent

_ROUNDING_S = 1e-6


@dataclass(slots=True, eq=False)
class AnnouncedTrial:
    """A trial and what has been published of it.

    Attributes
    ----------
    event : TrialEvent
    revision : int
        Number of the next estimate.
    reached_s : float
        Delay after onset that the last one was due at.
    closed : bool
        The final one is out.
    last_index : int
        Last volume that it saw.
    """

    event: TrialEvent
    revision: int = 0
    reached_s: float = 0.0
    closed: bool = False
    last_index: int = -1


Due = tuple[AnnouncedTrial, bool]
"""A trial that is due for an estimate, and whether that is the final one."""


class AnnouncedTrials:
    """Trials by run.

    Parameters
    ----------
    targets_s : sequence of float
        Delays after onset at which estimates are due, the final one last.
    """

    def __init__(self, targets_s: Sequence[float]) -> None:
        self._targets_s = tuple(targets_s)
        self._by_run: dict[int, list[AnnouncedTrial]] = {}
        self._known: set[str] = set()
        self._ended: set[int] = set()

    def add(self, event: TrialEvent) -> None:
        """Take note of a trial.

        Raises
        ------
        ProtocolError
            If the trial is known already, its times are unusable or its run is over.
        """
        where = f"trial {event.trial} of run {event.run}"
        if event.run in self._ended:
            raise ProtocolError(f"{where}: expected a run that is open or to come, got one that is over")
        if event.trial in self._known:
            raise ProtocolError(f"{where}: expected a trial identifier new to the session")
        if not (math.isfinite(event.onset_s) and event.onset_s >= 0):
            raise ProtocolError(f"{where}: onset_s: expected seconds after the start of the run, got {event.onset_s}")
        if not (math.isfinite(event.duration_s) and event.duration_s >= 0):
            raise ProtocolError(f"{where}: duration_s: expected seconds, not negative, got {event.duration_s}")
        self._known.add(event.trial)
        self._by_run.setdefault(event.run, []).append(AnnouncedTrial(event))

    def amend(self, event: TrialEvent) -> bool:
        """Correct a trial, whose estimates are then due again; False if its last one is out."""
        trial = self._open(event.run, event.trial)
        if trial is None:
            return False
        trial.event, trial.reached_s = event, 0.0
        return True

    def cancel(self, run: int, name: str) -> int | None:
        """Forget a trial; return the number of its next estimate, None if its last one is out."""
        trial = self._open(run, name)
        if trial is None:
            return None
        self._by_run[run].remove(trial)
        return trial.revision

    def _open(self, run: int, name: str) -> AnnouncedTrial | None:
        trials = self._by_run.get(run, [])
        return next((trial for trial in trials if trial.event.trial == name and not trial.closed), None)

    def begun(self, run: int, end_s: float) -> list[AnnouncedTrial]:
        """Return the trials of a run with an onset before `end_s`: one announced ahead changes nothing before it."""
        return [trial for trial in self._by_run.get(run, []) if trial.event.onset_s < end_s]

    def due(self, trials: Sequence[AnnouncedTrial], end_s: float) -> list[Due]:
        """Return which of some trials are due for an estimate now, each with whether it is the final one."""
        found = []
        for trial in trials:
            delay_s = end_s - trial.event.onset_s
            reached = [target for target in self._targets_s if target <= delay_s + _ROUNDING_S]
            if trial.closed or not reached or reached[-1] <= trial.reached_s:
                continue
            trial.reached_s = reached[-1]
            found.append((trial, reached[-1] == self._targets_s[-1]))
        return found

    def end(self, run: int) -> list[AnnouncedTrial]:
        """Forget a run that is over, and return its trials."""
        self._ended.add(run)
        return self._by_run.pop(run, [])
