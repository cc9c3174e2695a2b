"""The lanes between threads: some never drop, one keeps the newest per trial."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Generic, TypeVar

from rtdecode.records import BetaUpdate, RegisteredVolume

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - a state, not a fault
    """The lane was closed and is empty."""


class VolumeLane(Generic[T]):
    """First-in first-out lane that never drops.

    Parameters
    ----------
    capacity : float
        Items held before `wait_for_room` waits.
    changed : Condition, optional
        Told of each change; one that is shared lets a thread wait for several lanes.
    """

    def __init__(self, capacity: float = math.inf, changed: threading.Condition | None = None) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._changed = changed or threading.Condition()
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

    @property
    def oldest(self) -> T | None:
        """The item that `get` takes next; it stays."""
        with self._changed:
            return self._items[0] if self._items else None

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

    Parameters
    ----------
    changed : Condition, optional
        As of `VolumeLane`.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self._waiting: dict[str, BetaUpdate] = {}
        self._changed = changed or threading.Condition()
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


class DecodeLanes:
    """What waits for the decode worker: betas first, then volumes in their order, of which none is dropped.

    Attributes
    ----------
    pictures : PictureLane
    volumes : VolumeLane
        Those that are to be predicted of.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.pictures = PictureLane(self._changed)
        self.volumes: VolumeLane[RegisteredVolume] = VolumeLane(changed=self._changed)
        self._closed = False

    def get(self, timeout_s: float | None = None) -> BetaUpdate | RegisteredVolume | None:
        """Take a beta; a volume if there is none; None if nothing came within `timeout_s`.

        Raises
        ------
        Closed
            The lanes were closed and are empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self) > 0, timeout_s)
            if len(self.pictures):
                return self.pictures.get(0)
            if len(self.volumes):
                return self.volumes.get(0)
            if self._closed:
                raise Closed
            return None

    def close(self) -> None:
        """Refuse further items; what is waiting can still be taken."""
        with self._changed:
            self._closed = True
            self.pictures.close()
            self.volumes.close()

    def __len__(self) -> int:
        with self._changed:
            return len(self.pictures) + len(self.volumes)
