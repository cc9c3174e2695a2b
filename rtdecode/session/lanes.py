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


class _Lane(Generic[T]):
    """Items that wait between threads.

    Parameters
    ----------
    changed : Condition, optional
        Told of each change; one that is shared lets a thread wait for several lanes.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self._changed = changed or threading.Condition()
        self._closed = False

    def get(self, timeout_s: float | None = None) -> T | None:
        """Take the next item; None if nothing came within `timeout_s`.

        Raises
        ------
        Closed
            The lane was closed and is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self) > 0, timeout_s)
            if len(self):
                item = self._next()
                self._changed.notify_all()
                return item
            if self._closed:
                raise Closed
            return None

    def close(self) -> None:
        """Refuse further items; what is waiting can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class VolumeLane(_Lane[T]):
    """First-in first-out lane that never drops.

    Parameters
    ----------
    capacity : float
        Items held before `wait_for_room` waits.
    changed : Condition, optional
    """

    def __init__(self, capacity: float = math.inf, changed: threading.Condition | None = None) -> None:
        super().__init__(changed)
        self._items: deque[T] = deque()
        self._capacity = capacity

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

    @property
    def oldest(self) -> T | None:
        """The item that `get` takes next; it stays."""
        with self._changed:
            return self._items[0] if self._items else None

    def _next(self) -> T:
        return self._items.popleft()

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)


class PictureLane(_Lane[BetaUpdate]):
    """Betas waiting to be decoded: a newer beta of a trial replaces an older one that is not final.

    A final beta is never replaced. Trials are served in order of their oldest waiting beta.

    Parameters
    ----------
    changed : Condition, optional
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        super().__init__(changed)
        self._waiting: dict[str, BetaUpdate] = {}
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

    def withdraw(self, trial: str) -> None:
        """Forget what waits of a trial."""
        with self._changed:
            self._waiting.pop(trial, None)
            self._changed.notify_all()

    def _next(self) -> BetaUpdate:
        return self._waiting.pop(next(iter(self._waiting)))

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)


class DecodeLanes(_Lane[BetaUpdate | RegisteredVolume]):
    """What waits for the decode worker: betas first, then volumes in their order, of which none is dropped.

    Attributes
    ----------
    pictures : PictureLane
    volumes : VolumeLane
        Those that are to be predicted of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = PictureLane(self._changed)
        self.volumes: VolumeLane[RegisteredVolume] = VolumeLane(changed=self._changed)

    def close(self) -> None:
        """Refuse further items; what is waiting can still be taken."""
        with self._changed:
            self.pictures.close()
            self.volumes.close()
            super().close()

    def _next(self) -> BetaUpdate | RegisteredVolume:
        return self.pictures._next() if len(self.pictures) else self.volumes._next()

    def __len__(self) -> int:
        with self._changed:
            return len(self.pictures) + len(self.volumes)
