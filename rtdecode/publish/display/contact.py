"""Whether the daemon lives, told by this machine's monotonic clock alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rtdecode import client as wire

BEATS = 3.0
LEAST_S = 3.0  # a busy machine delays heartbeats by less
LONGEST_PERIOD_S = 60.0


class Contact:
    """When the last heartbeat was received.

    Parameters
    ----------
    monotonic, wall : callable
        Clocks of this machine, in seconds; the second one only tells the operator the time of day.

    Attributes
    ----------
    session : str
        Identifier of the session that the last heartbeat was of; empty if there was none.
    """

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._received: float | None = None
        self._received_wall = 0.0
        self._period_s = 1.0
        self._told_s = 0.0
        self.session = ""

    def beat(self, message: wire.Heartbeat) -> None:
        """Take a heartbeat that was received just now."""
        self._received, self._received_wall = self._monotonic(), self._wall()
        self._told_s, self.session = float(message.t_published), message.session
        period_s = float(message.every_s)
        self._period_s = period_s if 0 < period_s <= LONGEST_PERIOD_S else 1.0

    @property
    def known(self) -> bool:
        """Whether a heartbeat ever came."""
        return self._received is not None

    @property
    def alive(self) -> bool:
        """Whether the last heartbeat is no older than a few of their periods."""
        return self._received is not None and self.age_s <= max(LEAST_S, BEATS * self._period_s)

    @property
    def age_s(self) -> float:
        """Seconds since the last heartbeat was received; infinite if none ever was."""
        return math.inf if self._received is None else self._monotonic() - self._received

    def since(self, told_s: float, received: float) -> float:
        """Return how long ago, in seconds, the daemon published something.

        It was published before it was received, and long before if it was asked for later; the daemon's own clock
        tells how long before its last heartbeat.

        Parameters
        ----------
        told_s : float
            When, by the daemon's clock.
        received : float
            When it was received, by this machine's monotonic clock.
        """
        here = self._monotonic() - received
        return here if self._received is None else max(here, self._told_s - told_s + self.age_s)

    def state(self) -> dict[str, Any]:
        """Return what the page shows of it, ready for JSON."""
        return {
            "alive": self.alive,
            "age_s": round(self.age_s, 1) if self.known else None,
            "since_s": self._received_wall if self.known else None,
        }
