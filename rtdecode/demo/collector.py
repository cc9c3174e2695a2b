"""Follows the stream during a demo and remembers what the summary needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire


@dataclass(slots=True)
class SeenTrial:
    """What became of one trial."""

    trial: str
    run: int = 0
    score: wire.Score | None = None
    caption: str = ""
    revisions: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    done: bool = False


@dataclass(slots=True)
class Collected:
    """Everything so far; read it under the collector's lock or after its end."""

    mode: str = ""
    bundle: str | None = None
    calibration_trials: int = 0
    calibration: wire.Calibration | None = None
    received: int = 0
    skipped: int = 0
    runs_ended: set[int] = field(default_factory=set)
    faults: list[wire.Fault] = field(default_factory=list)
    trials: dict[str, SeenTrial] = field(default_factory=dict)
    betas: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    volume_ms: list[float] = field(default_factory=list)
    reconstruction_ms: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Trials that have their final picture, or will have none."""
        return sum(trial.done for trial in list(self.trials.values()))


class ClientThread:
    """A client on a thread of its own, while the block lasts; it takes what comes under the condition `changed`.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    topics : iterable of str
    from_start : bool
        Whether to begin with what was published before; the daemon must answer already.
    """

    def __init__(
        self, stream: str, requests: str, *, topics: Iterable[str] = tuple(wire.TOPICS), from_start: bool = False
    ) -> None:
        self.changed = threading.Condition()
        self._from_start = from_start
        self._stop = threading.Event()
        self._open = partial(wire.Client, stream, requests, topics=list(topics))
        self._thread = threading.Thread(target=self._follow, name=type(self).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take(self, message: wire.Message) -> None:
        """Take a message."""
        raise NotImplementedError

    def _follow(self) -> None:
        with self._open() as client:
            if self._from_start:
                client.catch_up()
            while not self._stop.is_set():
                message = client.receive(0.2)
                if message is not None:
                    with self.changed:
                        self.take(message)
                        self.changed.notify_all()


class Collector(ClientThread):
    """Collects what a visit's summary is made of.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon, which answers already.
    """

    def __init__(self, stream: str, requests: str) -> None:
        super().__init__(stream, requests, from_start=True)
        self.collected = Collected()

    def wait(self, reached: Callable[[Collected], bool], timeout_s: float) -> bool:
        """Wait until `reached` holds, at most `timeout_s`; return whether it does."""
        with self.changed:
            return self.changed.wait_for(lambda: reached(self.collected), timeout_s)

    def take(self, message: wire.Message) -> None:
        """Take a message."""
        seen = self.collected
        match message:
            case wire.Session():
                seen.mode, seen.bundle = message.mode, message.bundle
            case wire.Run() if message.state == "ended":
                seen.runs_ended.add(message.run or 0)
            case wire.Volume():
                seen.received += 1
                seen.volume_ms.append(message.stages["total"])
            case wire.Skipped():
                seen.skipped += 1
            case wire.Calibration():
                seen.calibration = message
                seen.calibration_trials = message.trials
            case wire.Fault():
                seen.faults.append(message)
            case wire.Beta() if message.final and message.invalid is None and message.beta is not None:
                array = message.beta
                seen.betas[message.trial or ""] = np.frombuffer(array.data, array.dtype).reshape(array.shape)
            case wire.Score() | wire.Caption() | wire.Reconstruction():
                self._decoded(message)
            case _:
                pass

    def _decoded(self, message: wire.Score | wire.Caption | wire.Reconstruction) -> None:
        name = message.trial or ""
        trial = self.collected.trials.setdefault(name, SeenTrial(name, run=message.run or 0))
        trial.revisions = (message.revision or 0) + 1
        match message:
            case wire.Score():
                trial.score = message
                trial.done = message.invalid is not None
            case wire.Caption():  # the last of a trial
                trial.caption = message.text
                trial.stages = dict(message.stages)
                trial.done = message.final
            case wire.Reconstruction():
                self.collected.reconstruction_ms.append(message.stages["total"])
