"""A session whose participant really regulates: what it is shown raises its next response.

It stands for scanner and daemon together behind real sockets. Of the daemon it keeps: the wire, answers to requests, a
`Feedback` for each trial and a final `Score`. The condition of a trial tells which step the participant has seen.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rtdecode import client as wire
from rtdecode.errors import Busy
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from tests.conftest import FakeClock
from tests.unit.test_wire import ListLog

STEPS = 20
STARTS_AT, GAIN = 0.2, 0.9


class RegulatingSession:
    """Answers as the daemon does.

    Attributes
    ----------
    levels : list of float
        The participant's response in each trial, 0 to 1.
    """

    def __init__(self) -> None:
        self.server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        self.out = Publisher("07-01-a", FakeClock(), self.server, ListLog())
        self.events: list[requests.Event] = []
        self.levels: list[float] = []
        self.server.start(self.answer)

    @property
    def addresses(self) -> tuple[str, str]:
        return self.server.stream, self.server.requests

    @property
    def steps(self) -> list[int]:
        return [round(STEPS * level) for level in self.levels]

    def answer(self, request: requests.AnyRequest) -> dict[str, object]:
        match request:
            case requests.Ping():
                return {"t_wall": time.time(), "t_mono": time.monotonic()}
            case requests.Replay():
                return self.out.replay(request.topic, request.since_seq)
            case requests.Snapshot():
                return {"messages": self.out.snapshot()}
            case requests.Event():
                if not self.server._subscribers._names:
                    raise Busy("nobody listens yet")
                self.events.append(request)
                if request.kind == "trial":
                    self._respond(request)
                return {"warnings": []}
        raise AssertionError(f"not expected of a client: {request}")

    def _respond(self, trial: requests.Event) -> None:
        seen = int((trial.condition or "seen-0").removeprefix("seen-"))
        level = min(1.0, STARTS_AT + GAIN * seen / STEPS)
        self.levels.append(level)
        fed = wire.Feedback(
            trial=trial.trial, run=trial.run, revision=0, score="category", target="face", value=level, steps=STEPS
        )
        self.out.publish(replace(fed, state="held"))
        self.out.publish(replace(fed, revision=1, state="shown", level=level, step=round(STEPS * level), final=True))
        score = wire.Score(trial=trial.trial, run=trial.run, final=True, predicted="face", evidence=level)
        self.out.publish(replace(score, revision=1))

    def close(self) -> None:
        self.server.close()
