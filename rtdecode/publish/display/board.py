"""What the page shows: a fold over the stream. No sockets, no threads."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from rtdecode import client as wire

TRACE_VOLUMES = 240
LATENCIES = 200
WEAK_ODDS = 2.0
REPLACED_PICTURES = 32  # kept a while: a page may still ask for them


class Board:
    """State of the page.

    Attributes
    ----------
    version : int
        Grows with every message that changes what is shown.
    """

    def __init__(self) -> None:
        self.version = 0
        self._session: dict[str, Any] = {}
        self._run: dict[str, Any] = {}
        self._calibration: dict[str, Any] = {}
        self._curve: list[list[float]] = []
        self._heartbeat: dict[str, Any] = {}
        self._notices: deque[dict[str, Any]] = deque(maxlen=6)
        self._trace: deque[list[float]] = deque(maxlen=TRACE_VOLUMES)
        self._quality: dict[str, Any] = {}
        self._trials: dict[str, dict[str, Any]] = {}
        self._pictures: dict[tuple[str, int], bytes] = {}
        self._replaced: deque[tuple[str, int]] = deque()
        self._latency: dict[str, deque[float]] = {}

    def apply(self, message: wire.Message) -> None:
        """Take one message of the stream."""
        match message:
            case wire.Session():
                self._session = {
                    "participant": message.participant,
                    "state": message.state,
                    "mode": message.mode,
                    "calibration_runs": message.calibration_runs,
                    "pack": message.pack,
                    "categories": list(message.categories),
                    "absent": list(message.absent),
                }
            case wire.Run():
                self._run = {"number": message.run, "state": message.state, "expected": message.expected}
                if message.state == "started":
                    self._trace.clear()
            case wire.Volume():
                self._volume(message)
            case wire.Skipped():
                where = "" if message.volume is None else f", volume {message.volume}"
                self._notices.appendleft({"kind": "skipped", "text": f"run {message.run}{where}: {message.reason}"})
            case wire.Fault():
                self._notices.appendleft({"kind": "fault", "text": f"{message.part}: {message.reason}"})
            case wire.Calibration():
                self._calibration = {
                    "trials": message.trials,
                    "percentile": message.percentile,
                    "interval": list(message.interval),
                    "note": message.note,
                }
                if message.percentile is not None and len(message.interval) == 2:
                    self._curve.append([message.trials, message.percentile, *message.interval])
            case wire.Heartbeat():
                self._heartbeat = {"t": message.t_published}
            case wire.Score() if message.invalid is not None:
                self._notices.appendleft({"kind": "skipped", "text": f"trial {message.trial}: {message.invalid}"})
            case wire.Score() | wire.Caption() | wire.Reconstruction():
                self._decoded(message)
            case _:
                return
        self.version += 1

    def picture(self, trial: str, revision: int) -> bytes | None:
        """Return an encoded picture."""
        return self._pictures.get((trial, revision))

    def state(self) -> dict[str, Any]:
        """Return everything the page needs, ready for JSON."""
        return {
            "session": self._session,
            "run": self._run,
            "calibration": self._calibration,
            "curve": self._curve,
            "heartbeat": self._heartbeat,
            "notices": list(self._notices),
            "trace": list(self._trace),
            "quality": self._quality,
            "trials": list(self._trials.values()),
            "latency": {name: _quantiles(values) for name, values in self._latency.items()},
        }

    def _volume(self, message: wire.Volume) -> None:
        self._trace.append([float(message.volume or 0), message.fd_mm, *(round(m, 5) for m in message.motion)])
        self._quality = {
            "volume": message.volume,
            "fd_mm": message.fd_mm,
            "tsnr": message.tsnr if math.isfinite(message.tsnr) else None,
            "lag": message.lag,
        }
        self._latency.setdefault("volume", deque(maxlen=LATENCIES)).append(message.stages["total"])

    def _decoded(self, message: wire.Score | wire.Caption | wire.Reconstruction) -> None:
        trial, revision = message.trial or "", message.revision or 0
        entry = self._trials.setdefault(trial, {"trial": trial, "revision": revision})
        entry.update(revision=revision, final=message.final)
        match message:
            case wire.Score():
                entry.update(
                    predicted=message.predicted,
                    evidence=message.evidence,
                    chance=message.chance,
                    p_noise=message.p_noise,
                    weak=message.evidence < WEAK_ODDS * message.chance or message.p_noise > 0.5,
                    rank=message.rank,
                    pool=message.pool,
                    stimulus=message.stimulus,
                    condition=message.condition,
                )
                name = "score"
            case wire.Caption():
                entry["caption"] = message.text
                name = "caption"
            case wire.Reconstruction():
                if entry.get("pictured", revision) != revision:
                    self._replaced.append((trial, entry["pictured"]))
                while len(self._replaced) > REPLACED_PICTURES:
                    del self._pictures[self._replaced.popleft()]
                self._pictures[trial, revision] = message.image
                entry["pictured"] = revision
                name = "picture"
        self._latency.setdefault(name, deque(maxlen=LATENCIES)).append(message.stages["total"])


def _quantiles(values: deque[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[math.ceil(0.99 * len(ordered)) - 1]}
