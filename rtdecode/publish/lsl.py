"""`rtdecode lsl`: markers and scores as Lab Streaming Layer outlets, for recordings beside EEG or eye tracking.

It is a client of the daemon like any other. Samples carry the time of publishing, turned from the daemon's clock into
this machine's LSL clock; where the two jump apart, a marker says so.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from rtdecode import client as wire
from rtdecode.errors import ProtocolError

TOPICS = ("run", "feedback", "score", "fault")
CHANNELS = ("feedback_value", "feedback_level", "evidence", "supported")
CHECK_S = 10.0
JUMP_S = 0.05
_NAN = math.nan


class Outlet(Protocol):
    """What is used of pylsl's `StreamOutlet`."""

    def push_sample(self, x: list[Any], timestamp: float = 0.0) -> None:
        """Send one sample with its time by the LSL clock, seconds."""
        ...


class Outlets:
    """Turns messages into samples.

    Parameters
    ----------
    markers, scores : Outlet
    clock : callable
        LSL's clock of this machine, seconds.
    wall : callable
        Wall clock of this machine, seconds since 1970.
    """

    def __init__(
        self, markers: Outlet, scores: Outlet, clock: Callable[[], float], wall: Callable[[], float] = time.time
    ) -> None:
        self._markers, self._scores, self._clock, self._wall = markers, scores, clock, wall
        self._ahead: float | None = None

    def checked(self, ahead_s: float) -> None:
        """Take how far the daemon's clock is ahead of this machine's; a jump is marked."""
        if self._ahead is not None and abs(ahead_s - self._ahead) > JUMP_S:
            self._mark({"marker": "clock jumped", "by_s": round(ahead_s - self._ahead, 4)}, self._clock())
        self._ahead = ahead_s

    def push(self, message: wire.Message) -> None:
        """Send what a message says, with the time at which it was published."""
        ago_s = self._wall() + (self._ahead or 0.0) - message.t_published
        at = self._clock() - max(0.0, ago_s)
        head = {"run": message.run, "trial": message.trial, "volume": message.volume, "revision": message.revision}
        told = {name: value for name, value in head.items() if value is not None}
        match message:
            case wire.Run():
                self._mark({"marker": f"run {message.state}", **told}, at)
            case wire.Fault():
                self._mark({"marker": "fault over" if message.over else "fault", "part": message.part}, at)
            case wire.Feedback():
                self._scores.push_sample([_number(message.value), _number(message.level), _NAN, _NAN], at)
                self._mark({"marker": f"feedback {message.state}", **told}, at)
            case wire.Score():
                self._scores.push_sample([_NAN, _NAN, message.evidence, float(message.supported)], at)
                self._mark({"marker": "score", "predicted": message.predicted, **told}, at)

    def _mark(self, told: dict[str, Any], at: float) -> None:
        self._markers.push_sample([json.dumps(told)], at)


def _number(value: float | None) -> float:
    return _NAN if value is None else value


def open_outlets(name: str) -> Outlets:
    """Open the two outlets ``NAME-markers`` and ``NAME-scores``.

    Raises
    ------
    ProtocolError
        pylsl or its library is not there.
    """
    try:
        import pylsl
    except (ImportError, RuntimeError, OSError) as error:
        raise ProtocolError(f"the Lab Streaming Layer is not there ({error}): pip install 'rtdecode[lsl]'") from None
    marked = pylsl.StreamInfo(f"{name}-markers", "Markers", 1, pylsl.IRREGULAR_RATE, "string", f"{name}-markers")
    scored = pylsl.StreamInfo(
        f"{name}-scores", "Feedback", len(CHANNELS), pylsl.IRREGULAR_RATE, "float32", f"{name}-scores"
    )
    channels = scored.desc().append_child("channels")
    for label in CHANNELS:
        channels.append_child("channel").append_child_value("label", label)
    return Outlets(pylsl.StreamOutlet(marked), pylsl.StreamOutlet(scored), pylsl.local_clock)


def follow(client: wire.Client, outlets: Outlets, ending: Callable[[], bool] = lambda: False) -> None:
    """Send what comes until told to end; look at the clocks now and then."""
    check_at = 0.0
    while not ending():
        if time.monotonic() >= check_at:
            with contextlib.suppress(TimeoutError):  # the client says that nothing comes
                outlets.checked(client.ping()[0])
            check_at = time.monotonic() + CHECK_S
        message = client.receive(0.2)
        if message is not None:
            outlets.push(message)
