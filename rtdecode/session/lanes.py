"""The two lanes between threads: one that never drops, one that keeps the newest per trial."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from rtdecode.records import BetaUpdate

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - a state, not a fault
    """The lane was closed and is empty."""


class VolumeLane(Generic[T]):
    """First-in first-out lane that never drops.

    Parameters
    ----------
    capacity : int
        Items held before `wait_for_room` waits.
    """

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Add `item`; whoever must not fill the lane calls `wait_for_room` before.

        Raises
        ------
        Closed
            The lane was closed.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until the lane is not full, or closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the oldest item; None if nothing came within `timeout_s`.

        Raises
        ------
        Closed
            The lane was closed and is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items), timeout_s)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._closed:
                raise Closed
            return None

    def close(self) -> None:
        """Refuse further items; what is in the lane can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)


class PictureLane:
    """Betas waiting to be decoded: a newer beta of a trial replaces an older one that is not final.

    A final beta is never replaced. Trials are served in order of their oldest waiting beta.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, BetaUpdate] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._superseded = 0

    @property
    def superseded(self) -> int:
        """Number of betas that a newer one replaced before they were decoded."""
        with self._changed:
            return self._superseded

    def put(self, beta: BetaUpdate) -> BetaUpdate | None:
        """Offer a beta; return the one it replaced, if any.

        Raises
        ------
        Closed
            The lane was closed.
        """
        trial = beta.event.trial
        with self._changed:
            if self._closed:
                raise Closed
            older = self._waiting.get(trial)
            if older is not None and (older.final or older.revision >= beta.revision):
                return None
            self._waiting[trial] = beta
            if older is not None:
                self._superseded += 1
            self._changed.notify_all()
            return older

    def get(self, timeout_s: float | None = None) -> BetaUpdate | None:
        """Take the next beta; None if nothing came within `timeout_s`.

        Raises
        ------
        Closed
            The lane was closed and is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._waiting), timeout_s)
            if self._waiting:
                return self._waiting.pop(next(iter(self._waiting)))
            if self._closed:
                raise Closed
            return None

    def close(self) -> None:
        """Refuse further betas; what is waiting can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)
