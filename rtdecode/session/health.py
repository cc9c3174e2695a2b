"""Looks at what may be broken, tells of it once and again when it is over; sends the heartbeats."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rtdecode import client as wire
from rtdecode.acquire.source import Source
from rtdecode.clock import Clock
from rtdecode.decode.service import DecodeService
from rtdecode.session.line import Line
from rtdecode.session.recording import Recording

DISK_LOW_BYTES = 2 << 30
STUCK_S = 5.0
"""Longest time that one turn of a thread may take, or the worker be silent, without being told of."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is broken: what it is, what is missing until it is mended, and what to do."""

    reason: str
    degraded: str
    remedy: str


class Watch:
    """Its turns belong to one thread, so that a part that hangs cannot keep others from being told of it.

    Parameters
    ----------
    source : Source
    line : Line
    decoder : DecodeService
    recording : Recording
    beat : callable
        Makes the heartbeat.
    publish : callable
        Publishes a message.
    clock : Clock
    every_s : float
        Seconds between two heartbeats.
    late_s : callable
        Tells how long the oldest volume has waited for its prediction, seconds.

    Attributes
    ----------
    failure : str or None
        What the ingest thread failed with at its last turn.
    """

    def __init__(
        self,
        source: Source,
        line: Line,
        decoder: DecodeService,
        recording: Recording,
        beat: Callable[[], wire.Heartbeat],
        publish: Callable[[wire.Message], None],
        clock: Clock,
        every_s: float,
        late_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._source = source
        self._line = line
        self._decoder = decoder
        self._recording = recording
        self._beat = beat
        self._publish = publish
        self._clock = clock
        self._every_s = every_s
        self._late_s = late_s
        self._due = clock.monotonic()
        self._turns: dict[str, float] = {}
        self._looks = 0
        self._looked_mono_s = self._due
        self._told: dict[tuple[str, str], Trouble] = {}
        self._judges: dict[tuple[str, str], Callable[[], Trouble | None]] = {
            ("acquire", "folder"): self._folder,
            ("acquire", "no-volume"): self._volumes,
            ("acquire", "stuck"): lambda: self._stuck("ingest", "volumes do not arrive", self._looked_mono_s),
            ("estimate", "stuck"): lambda: self._stuck("estimate", "betas are late"),
            ("decode", "silent"): self._worker,
            ("decode", "late"): self._predictions,
            ("disk", "low"): self._disk,
            ("disk", "recording"): self._written,
            ("disk", "tables"): self._complete,
        }
        self.failure: str | None = None

    @contextmanager
    def turn(self, thread: str) -> Iterator[None]:
        """While a thread takes a turn that must not last."""
        self._turns[thread] = self._clock.monotonic()
        try:
            yield
        finally:
            del self._turns[thread]

    def once(self) -> bool:
        """Look and send a heartbeat, if one is due."""
        now = self._clock.monotonic()
        if now < self._due:
            return False
        self._due = now + self._every_s
        if self._source.looks != self._looks:
            self._looks, self._looked_mono_s = self._source.looks, now
        for name, judge in self._judges.items():
            self._tell(name, judge())
        self._publish(self._beat())
        return True

    def _tell(self, name: tuple[str, str], trouble: Trouble | None) -> None:
        (part, kind), told = name, self._told.get(name)
        if trouble is not None and told is None:
            self._told[name] = trouble
            self._publish(
                wire.Fault(
                    part=part, kind=kind, reason=trouble.reason, degraded=trouble.degraded, remedy=trouble.remedy
                )
            )
        elif trouble is None and told is not None:
            del self._told[name]
            self._publish(wire.Fault(part=part, kind=kind, reason=told.reason, over=True))

    def _folder(self) -> Trouble | None:
        problem = self._source.problem or self.failure
        if problem is None:
            return None
        return Trouble(problem, "no volumes arrive until it is mended", "mount the export folder; mend its permissions")

    def _volumes(self) -> Trouble | None:
        overdue_s = self._line.overdue_s()
        if overdue_s is None:
            return None
        remedy = "look whether the scanner runs and exports; if the run is over, let the experiment say so (run_end)"
        return Trouble(f"no volume since {overdue_s:.0f} s", "nothing is estimated or decoded", remedy)

    def _stuck(self, thread: str, degraded: str, moved_mono_s: float = -math.inf) -> Trouble | None:
        """Judge a thread whose turn has brought nothing since it began, or since it moved last."""
        began = self._turns.get(thread)
        if began is None or self._clock.monotonic() - max(began, moved_mono_s) < STUCK_S:
            return None
        remedy = "look at the daemon's log; if it goes on, end it and start it with --resume"
        return Trouble(f"the {thread} thread has been at one item for over {STUCK_S:.0f} s", degraded, remedy)

    def _worker(self) -> Trouble | None:
        if self._decoder.silent_s < STUCK_S:
            return None
        return Trouble(
            f"the decode worker gives no sign of life for over {STUCK_S:.0f} s",
            "no scores, captions and pictures; volumes and betas go on",
            "none: it is replaced by itself",
        )

    def _predictions(self) -> Trouble | None:
        late_s = self._late_s()
        if late_s < STUCK_S:
            return None
        return Trouble(
            f"a volume has waited for its prediction for {late_s:.0f} s",
            "predictions come late; none is left out",
            "none if it passes; else a decoder that takes less than a repetition time for a volume",
        )

    def _disk(self) -> Trouble | None:
        """Say that the disk is nearly full before it is; the scan itself then has what is left."""
        try:
            free = shutil.disk_usage(self._recording.folder).free
        except OSError:
            return None  # told by `_written`
        self._recording.saving = free < DISK_LOW_BYTES
        if not self._recording.saving:
            return None
        reason = f"{free / 2**30:.1f} GiB left on the disk of the session folder"
        return Trouble(reason, "pictures are not kept; volumes and betas are", "make room on the disk")

    def _written(self) -> Trouble | None:
        problem = self._recording.problem
        if problem is None:
            return None
        degraded = "what cannot be written is held in memory; a crash would lose it"
        return Trouble(problem, degraded, "make room, or put the session folder back where it was")

    def _complete(self) -> Trouble | None:
        reason = self._recording.incomplete
        if reason is None:
            return None
        degraded = "volumes and the journals that all can be made from are not concerned"
        return Trouble(reason, degraded, "make room; when the session is over: --resume --reopen writes them anew")
