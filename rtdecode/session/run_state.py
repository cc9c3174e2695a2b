"""What a session knows of the run that is open, and how far the scan has come."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rtdecode.clock import Clock
from rtdecode.estimate.report import RunReport
from rtdecode.records import BetaUpdate, Stamp, TrialEvent


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the scan has come.

    Attributes
    ----------
    closed : int
        Runs up to this one are over.
    run : int or None
        The run that is open.
    volumes : int
        Of it, how many have come or been given up.
    scanned_s : float
        Their time, seconds; 0 while the repetition time is not known.
    """

    closed: int = 0
    run: int | None = None
    volumes: int = 0
    scanned_s: float = 0.0


@dataclass(slots=True)
class RunState:
    """The run that is open.

    Attributes
    ----------
    run : int
    expected : int or None
        Volumes, as announced.
    received, skipped : int
        Volumes that came, and that were given up.
    doubted : set of str
        Timing doubts that have been told.
    accounted : int
        Volumes that have come or been given up.
    finals : list of BetaUpdate
        Final betas so far.
    report : RunReport
    """

    run: int
    expected: int | None = None
    received: int = 0
    skipped: int = 0
    doubted: set[str] = field(default_factory=set)
    accounted: int = 0
    finals: list[BetaUpdate] = field(default_factory=list)
    report: RunReport = field(default_factory=RunReport)


def last_word(event: TrialEvent, reason: str, revision: int, session: str, clock: Clock) -> BetaUpdate:
    """Return the final beta of a trial that no volume will tell of: there is none, and why."""
    stamp = Stamp(
        session=session,
        run=event.run,
        volume=-1,
        trial=event.trial,
        received_s=clock.wall(),
        received_mono_s=clock.monotonic(),
    )
    nothing = np.zeros(0, np.float32)
    return BetaUpdate(
        stamp=stamp, event=event, revision=revision, final=True, delay_s=0.0, beta=nothing, invalid=reason
    )
