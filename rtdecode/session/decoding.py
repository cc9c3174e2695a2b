"""The end of the line: betas become embeddings, captions and pictures, published as they become ready."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rtdecode import client as wire
from rtdecode.bundle import ParticipantBundle
from rtdecode.clock import Clock
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.drift import DriftMonitor
from rtdecode.decode.service import DecodeService
from rtdecode.decoded import Part, Score, pieces
from rtdecode.publish import messages
from rtdecode.publish.publisher import Publisher
from rtdecode.records import BetaUpdate, Drift, Stamp
from rtdecode.session.lanes import PictureLane
from rtdecode.session.recording import Recording

DRIFT_TRIALS = 8
DRIFT_SHIFT = 0.75  # without drift, 0.24 after so many trials
_REMEMBERED = 20  # decoded betas whose times are told


class Decoding:
    """Takes the newest betas and asks the decode worker; its turns belong to one thread.

    Parameters
    ----------
    decoder : DecodeService
    pictures : PictureLane
        Where betas wait.
    recording : Recording
    publisher : Publisher
    clock : Clock
    loaded : callable
        Told whenever a participant has been loaded.
    """

    def __init__(
        self,
        decoder: DecodeService,
        pictures: PictureLane,
        recording: Recording,
        publisher: Publisher,
        clock: Clock,
        loaded: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._pictures = pictures
        self._recording = recording
        self._publisher = publisher
        self._clock = clock
        self._tell_loaded = loaded
        self._asked: ParticipantBundle | None = None
        self._ready = threading.Event()
        self._ending = threading.Event()
        self._earlier: list[BetaUpdate] = []
        self._drift: DriftMonitor | None = None
        self._drifted = False
        self._times: deque[dict[str, float]] = deque(maxlen=_REMEMBERED)
        self.bundle: str | None = None
        """Identity of the participant that is loaded."""

    def ask(self, bundle: ParticipantBundle) -> None:
        """Let a participant be loaded at the next turn."""
        self._asked = bundle

    def remember(self, beta: BetaUpdate) -> None:
        """Take note of a final beta that an interrupted session has decoded already."""
        self._earlier.append(beta)

    def end(self) -> None:
        """Do not wait for a participant any longer."""
        self._ending.set()

    def health(self) -> dict[str, Any]:
        """Return what heartbeats tell: median milliseconds per stage of late, restarts of the worker, GPU memory."""
        recent = list(self._times)
        names = dict.fromkeys(name for times in recent for name in times)
        return {
            "decode_ms": {name: float(np.median([times[name] for times in recent if name in times])) for name in names},
            "worker_restarts": self._decoder.restarts,
            "gpu_bytes": self._decoder.gpu_bytes,
        }

    def once(self, timeout_s: float) -> bool:
        """Load a participant that was asked for, or decode one beta; False if there was nothing to do.

        Raises
        ------
        Closed
            The session is ending and nothing is left to decode.
        """
        if self._asked is not None:
            bundle, self._asked = self._asked, None
            self._load(bundle)
            return True
        if not self._ready.is_set() and not self._ending.is_set():
            self._ready.wait(min(timeout_s, 0.02))
            return False
        beta = self._pictures.get(timeout_s)
        if beta is None:
            return False
        if self._ready.is_set():
            self._decode(beta)
        elif beta.final:
            self._refuse(beta, "not decoded: the session ended before a ParticipantBundle was loaded")
        return True

    def _refuse(self, beta: BetaUpdate, reason: str) -> None:
        stages = {"total": self._since_ms(beta.stamp)}
        self._publisher.publish(messages.headed(messages.no_score(replace(beta, invalid=reason)), beta.stamp, stages))

    def _load(self, bundle: ParticipantBundle) -> None:
        self.bundle = self._decoder.load(bundle.folder)
        self._drift = DriftMonitor(adapter_from(bundle.adapter))
        for beta in self._earlier:
            self._drift.add(beta.beta)
        self._earlier.clear()
        self._ready.set()
        self._recording.inputs.append("bundle_loaded", identity=self.bundle)
        self._tell_loaded()

    def _decode(self, beta: BetaUpdate) -> None:
        """Publish each part as it becomes ready; record the trial after the last part of its final beta."""
        stamp = beta.stamp
        waited = self._since_ms(stamp)
        times: dict[str, float] = {}
        found: list[Part] = []
        path: str | None = None
        drift = self._drift.drift if self._drift else None

        def scored() -> bool:
            return any(isinstance(piece, Score) for piece in found)

        def settle() -> None:
            self._times.append(times)
            if not beta.final:
                return
            self._recording.decoded(beta, found, path, self._since_ms(stamp))
            if self._drift is not None:
                self._drift.add(beta.beta)
                self._judge(self._drift.drift)

        try:
            for part, milliseconds in self._decoder.decode(beta):
                times[part.stage] = milliseconds
                for piece in pieces(part):
                    if isinstance(piece, Score) and drift is not None:
                        piece = replace(piece, shift=drift.shift, spread=drift.spread)
                    found.append(piece)
                    message = messages.decoded(beta, piece)
                    if isinstance(message, wire.Reconstruction):
                        path = self._recording.picture(beta.event.trial, beta.revision, message.image)
                    stages = {"queue": waited, **times, "total": self._since_ms(stamp)}
                    self._publisher.publish(messages.headed(message, stamp, stages))
        except Exception as error:  # a fault is told of it elsewhere; the trial itself must not end in silence
            if scored():
                settle()
            else:
                self._refuse(beta, f"not decoded: {error}")
            raise
        if scored():
            settle()

    def _judge(self, drift: Drift | None) -> None:
        """Say once that the betas are no longer what the decoder was calibrated on."""
        if drift is None or self._drifted or drift.trials < DRIFT_TRIALS or drift.shift < DRIFT_SHIFT:
            return
        self._drifted = True
        reason = (
            f"over {drift.trials} trials the betas lie {drift.shift:.2f} standard deviations from the calibration's"
        )
        degraded = "scores are surer than they should be: look at the motion trace, or calibrate again"
        remedy = "ask how the participant lies; recalibrate if it goes on"
        self._publisher.publish(
            wire.Fault(part="estimate", kind="drift", reason=reason, degraded=degraded, remedy=remedy)
        )

    def _since_ms(self, stamp: Stamp) -> float:
        return 1e3 * (self._clock.monotonic() - stamp.received_mono_s)
