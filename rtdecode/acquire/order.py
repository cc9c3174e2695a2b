"""Lets the volumes of one run out in index order, whatever order they come in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtdecode.acquire.source import Arrival


class RunQueue:
    """Volumes of one run that wait for their turn.

    An absent index is waited for until a later one has been there for `gap_timeout_s`, and as long since the one
    before it came; then it is given up for good. So one file that is far ahead does not outrun the others.

    Parameters
    ----------
    gap_timeout_s : float
    start : int
        The first index that is wanted.
    """

    def __init__(self, gap_timeout_s: float, start: int = 0) -> None:
        self._gap_timeout_s = gap_timeout_s
        self._next = start
        self._latest_s = -math.inf
        self._waiting: dict[int, tuple[float, Arrival]] = {}

    @property
    def next_index(self) -> int:
        """The lowest index that has neither come out nor been given up."""
        return self._next

    @property
    def held(self) -> bool:
        """Whether volumes wait behind a gap."""
        return bool(self._waiting)

    def takes(self, index: int) -> bool:
        """Say whether `index` is still wanted."""
        return index >= self._next and index not in self._waiting

    def offer(self, index: int, arrival: Arrival, now_s: float) -> None:
        """Put in what stands for `index`, which `takes` must have allowed.

        Raises
        ------
        ValueError
            If the index is taken.
        """
        if not self.takes(index):
            raise ValueError(f"index {index} is taken")
        self._waiting[index] = (now_s, arrival)

    def quiet_s(self, now_s: float, since_s: float) -> float:
        """Return for how long nothing has come out, counted from `since_s` where nothing ever has."""
        return now_s - max(self._latest_s, since_s)

    def give_up(self) -> None:
        """Let the next index be missing."""
        self._next += 1

    def release(self, now_s: float) -> list[tuple[int, Arrival | None]]:
        """Take out all that may go, in index order; None stands for an index given up."""
        out: list[tuple[int, Arrival | None]] = []
        while self._waiting:
            if self._next in self._waiting:
                came_s, arrival = self._waiting.pop(self._next)
                self._latest_s = max(self._latest_s, came_s)
                out.append((self._next, arrival))
            elif now_s - max(self._latest_s, min(s for s, _ in self._waiting.values())) >= self._gap_timeout_s:
                out.append((self._next, None))
            else:
                break
            self._next += 1
        return out


@dataclass(slots=True)
class Run:
    """One series that became a run.

    Attributes
    ----------
    number : int
        From 1.
    first_instance : int
        Number that the series gives its first volume.
    queue : RunQueue
    shape : tuple of int or None
        Of its volumes, once there is one.
    t_r_s : float
        Repetition time; 0 while unknown.
    last_index : int or None
        Of the last volume, where the number of volumes is announced.
    opened_s : float
        When it was opened or resumed, on the monotonic clock.
    resumed_at : int
        Volumes before this one were dealt with before the session was interrupted.
    """

    number: int
    first_instance: int
    queue: RunQueue
    shape: tuple[int, ...] | None = None
    t_r_s: float = 0.0
    last_index: int | None = None
    opened_s: float = 0.0
    resumed_at: int = 0
