"""The end of the line: what the decode worker makes of betas and volumes, published as it becomes ready."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.alarm import WINDOW, ContentAlarm
from rtdecode.decode.score.claim import claimed, rate_limit
from rtdecode.decode.score.drift import DriftMonitor
from rtdecode.decode.score.evidence import evidence_from
from rtdecode.decode.service import DecodeService
from rtdecode.decoded import DecodedPart, Embedding, Prediction, Reconstruction, Score, pieces
from rtdecode.packs import ParticipantBundle
from rtdecode.publish import messages
from rtdecode.publish.pictures import Encoding
from rtdecode.publish.publisher import Publisher
from rtdecode.records import BetaUpdate, Drift, RegisteredVolume, Stamp
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.feedback import TrialFeedback, no_trial
from rtdecode.session.lanes import DecodeLanes
from rtdecode.session.recording import Recording

_log = logging.getLogger(__name__)

DRIFT_TRIALS = 8
DRIFT_SHIFT = 0.75  # without drift, 0.24 after so many trials
_REMEMBERED = 20  # decoded betas whose times are told
_NOTHING = np.zeros((1, 1), np.float32)
_NO_PARTICIPANT = "the session ended before a ParticipantBundle was loaded"


class Decoding:
    """Takes the newest betas, then volumes, and asks the decode worker; its turns belong to one thread.

    Parameters
    ----------
    decoder : DecodeService
    waiting : DecodeLanes
        Where betas and volumes wait.
    recording : Recording
    publisher : Publisher
    clock : Clock
    loaded : callable
        Told whenever a participant has been loaded.
    encoding : {"jpeg", "webp", "png"}
        Of pictures in messages.
    feedback : TrialFeedback, optional
        What a participant is shown of decoded trials.

    Attributes
    ----------
    feedback : TrialFeedback
    """

    def __init__(
        self,
        decoder: DecodeService,
        waiting: DecodeLanes,
        recording: Recording,
        publisher: Publisher,
        clock: Clock,
        loaded: Callable[[], None],
        encoding: Encoding = "jpeg",
        feedback: TrialFeedback | None = None,
    ) -> None:
        self._decoder = decoder
        self._waiting = waiting
        self._recording = recording
        self._publisher = publisher
        self._clock = clock
        self._tell_loaded = loaded
        self._encoding = encoding
        self._asked: ParticipantBundle | None = None
        self._ready = threading.Event()
        self._ending = threading.Event()
        self._earlier: list[BetaUpdate] = []
        self._drift: DriftMonitor | None = None
        self._drifted = False
        self._gate_limit = 1.0
        self._alarm: ContentAlarm | None = None
        self._alarmed = False
        self._unsearched = ""
        self._claim = recording.claim()
        self._times: deque[dict[str, float]] = deque(maxlen=_REMEMBERED)
        self._earlier_volumes: deque[RegisteredVolume] = deque(maxlen=max(decoder.window - 1, 0))
        self._predict_ms: deque[float] = deque(maxlen=_REMEMBERED)
        self._ready_mono_s = 0.0
        self.feedback = feedback or TrialFeedback(FeedbackSettings())
        self.bundle: str | None = None
        """Identity of the participant that is loaded."""

    def ask(self, bundle: ParticipantBundle) -> None:
        """Let a participant be loaded at the next turn."""
        self._asked = bundle

    def remember(self, beta: BetaUpdate) -> None:
        """Take note of a final beta that an interrupted session has decoded already."""
        self._earlier.append(beta)

    def pass_by(self, volume: RegisteredVolume) -> None:
        """Take note of a volume that an interrupted session has predicted of already."""
        self._earlier_volumes.append(volume)

    def end(self) -> None:
        """Do not wait for a participant any longer."""
        self._ending.set()

    def health(self) -> dict[str, Any]:
        """Return what heartbeats tell: median milliseconds per stage of late, restarts, memory and fallbacks."""
        recent = [*self._times, *({Prediction.stage: ms} for ms in list(self._predict_ms))]
        names = dict.fromkeys(name for times in recent for name in times)
        return {
            "decode_ms": {name: float(np.median([times[name] for times in recent if name in times])) for name in names},
            "worker_restarts": self._decoder.restarts,
            "gpu_bytes": self._decoder.gpu_bytes,
            "fallbacks": self._decoder.fallbacks,
        }

    def late_s(self) -> float:
        """Seconds that the oldest volume has waited for its prediction, since there is a participant; any thread."""
        oldest = self._waiting.volumes.oldest
        if oldest is None or not self._ready.is_set():
            return 0.0
        return self._clock.monotonic() - max(oldest.stamp.received_mono_s, self._ready_mono_s)

    def once(self, timeout_s: float) -> bool:
        """Load a participant that was asked for, decode one beta or predict of one volume; False if nothing waits.

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
        item = self._waiting.get(timeout_s)
        if item is None:
            return False
        if isinstance(item, RegisteredVolume):
            self._predict(item)
        elif self._ready.is_set():
            self._decode(item)
        elif item.final:
            self._refuse(item, f"not decoded: {_NO_PARTICIPANT}")
        return True

    def _refuse(self, beta: BetaUpdate, reason: str) -> None:
        stages = {"total": self._since_ms(beta.stamp)}
        self._show(no_trial(self.feedback.settings, reason), beta, stages)
        self._publisher.publish(messages.headed(messages.no_score(replace(beta, invalid=reason)), beta.stamp, stages))

    def _show(self, told: wire.Feedback | None, beta: BetaUpdate, stages: dict[str, float]) -> None:
        """Publish feedback of a trial; it comes before its score, which says that the beta has been decoded."""
        if told is not None:
            told = replace(told, trial=beta.event.trial, revision=beta.revision, final=beta.final)
            self._publisher.publish(messages.headed(told, beta.stamp, stages))

    def _load(self, bundle: ParticipantBundle) -> None:
        self.bundle = self._decoder.load(bundle.folder)
        self._drift = DriftMonitor(adapter_from(bundle.adapter))
        evidence = evidence_from(bundle.evidence)
        self._gate_limit = rate_limit(float(evidence.level[0]), int(evidence.independent_nulls[0]))
        self._alarm = ContentAlarm(evidence)
        for beta in self._earlier:
            self._drift.add(beta.beta)
        self._earlier.clear()
        self._ready_mono_s = self._clock.monotonic()
        self._ready.set()
        _log.info("decoding with %s, %s, of %d trials", bundle.folder, bundle.identity[:12], bundle.provenance.trials)
        self._recording.inputs.append("bundle_loaded", identity=self.bundle)
        self._tell_loaded()

    def _decode(self, beta: BetaUpdate) -> None:
        """Publish each part as it becomes ready; record the trial after the last part of its final beta."""
        stamp = beta.stamp
        waited = self._since_ms(stamp)
        times: dict[str, float] = {}
        found: list[DecodedPart] = []
        path: str | None = None
        drift = self._drift.drift if self._drift else None

        def scored() -> bool:
            return any(isinstance(piece, Score) for piece in found)

        def settle() -> None:
            self._times.append(times)
            if not beta.final:
                return
            if not self.feedback.withholds:
                self._recording.decoded(beta, found, path, self._since_ms(stamp))
            if self._drift is not None:
                self._drift.add(beta.beta)
                self._judge(self._drift.drift)

        try:
            for part, milliseconds in self._decoder.decode(beta):
                times[part.stage] = milliseconds
                for piece in pieces(part):
                    stages = {"queue": waited, **times, "total": self._since_ms(stamp)}
                    if isinstance(piece, Score):
                        piece = self._in_session(piece, beta, drift)
                        tokens = next((one.tokens for one in (part, *found) if isinstance(one, Embedding)), _NOTHING)
                        shown = self.feedback.of(beta, piece, tokens, took_s=1e-3 * stages["total"])
                        self._show(shown, beta, stages)
                    elif isinstance(piece, Embedding):
                        self._watch_pool(piece.unsearched)
                    found.append(piece)
                    if self.feedback.withholds:
                        if isinstance(piece, Score):
                            self._publisher.publish(messages.headed(messages.withheld(beta), stamp, stages))
                        continue
                    message = messages.decoded(beta, piece, self._encoding)
                    self._publisher.publish(messages.headed(message, stamp, stages))
                    if isinstance(piece, Reconstruction):  # without loss, which takes long: nobody waits for it
                        path = self._recording.picture(beta.event.trial, beta.revision, piece.image)
        except Exception as error:  # a fault is told of it elsewhere; the trial itself must not end in silence
            if scored():
                settle()
            else:
                self._refuse(beta, f"not decoded: {error}")
            raise
        if scored():
            settle()

    def _in_session(self, score: Score, beta: BetaUpdate, drift: Drift | None) -> Score:
        """Add what only the session knows: how its betas have moved, and what its final scores add up to."""
        if drift is not None:
            score = replace(score, shift=drift.shift, spread=drift.spread)
        if beta.final:
            self._claim = claimed(self._claim, score.supported, self._gate_limit)
            self._watch_content(score.p_content)
        return replace(score, claim=self._claim)

    def _predict(self, volume: RegisteredVolume) -> None:
        """Publish what is predicted of a volume, or why nothing is: each has its message."""
        stamp = volume.stamp
        waited = self._since_ms(stamp)
        earlier = [before for before in self._earlier_volumes if before.stamp.run == stamp.run]
        self._earlier_volumes.append(volume)

        def publish(message: wire.Prediction, **took: float) -> None:
            total = self._since_ms(stamp)
            message = replace(message, late_s=1e-3 * total)
            self._publisher.publish(messages.headed(message, stamp, {"queue": waited, **took, "total": total}))

        if not self._ready.is_set():
            publish(wire.Prediction(final=True, invalid=f"not predicted: {_NO_PARTICIPANT}"))
            return
        try:
            found, milliseconds = self._decoder.predict((*earlier, volume))
        except Exception as error:  # a fault is told of it elsewhere
            publish(wire.Prediction(final=True, invalid=f"not predicted: {error}"))
            raise
        self._predict_ms.append(milliseconds)
        publish(messages.prediction(found), **{Prediction.stage: milliseconds})

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

    def _watch_content(self, p_content: float) -> None:
        """Say once that the latest trials hold less of a picture than calibration's did."""
        if self._alarm is None or self._alarmed:
            return
        self._alarm.add(p_content)
        if not self._alarm.rings():
            return
        self._alarmed = True
        reason = (
            f"the last {WINDOW} trials hold less of a picture than calibration's: mean rank "
            f"{self._alarm.mean_rank:.2f} among these, .5 is usual"
        )
        degraded = "few trials are supported, and what is decoded may be noise"
        remedy = (
            "ask whether the participant sees the pictures and is awake; check the trigger and the announced onsets"
        )
        self._publisher.publish(
            wire.Fault(part="decode", kind="content", reason=reason, degraded=degraded, remedy=remedy)
        )

    def _watch_pool(self, unsearched: str) -> None:
        """Say once that the pool does not answer, and when it does again."""
        if bool(unsearched) == bool(self._unsearched):
            return
        fault = wire.Fault(
            part="decode",
            kind="pool",
            reason=unsearched or self._unsearched,
            degraded="" if not unsearched else "no pictures of the pool are named; all else goes on",
            remedy="" if not unsearched else "see to the service; rtdecode engines pool search asks it by hand",
            over=not unsearched,
        )
        self._unsearched = unsearched
        self._publisher.publish(fault)

    def _since_ms(self, stamp: Stamp) -> float:
        return 1e3 * (self._clock.monotonic() - stamp.received_mono_s)
