"""Answers what clients ask; on the publish thread."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.decode.service import DecodeService
from rtdecode.errors import AnotherSession, BundleError, Busy, Late, ProtocolError
from rtdecode.estimate.calibrated import expected_provenance, same_betas, strangeness
from rtdecode.packs import EnginePack, ParticipantBundle, open_participant
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.records import BundleRequest, Command, Skipped, TrialOverdue, Volume
from rtdecode.session.announcements import Announcements, announced
from rtdecode.session.decoding import Decoding
from rtdecode.session.inlet import Inlet
from rtdecode.session.line import Line
from rtdecode.session.past import Input
from rtdecode.session.recording import session_folder
from rtdecode.session.run_state import Progress
from rtdecode.session.steering import Steering
from rtdecode.settings import Settings

_log = logging.getLogger(__name__)
_TOLD = {spec.name for spec in dataclasses.fields(wire.Calibration)} - {
    spec.name for spec in dataclasses.fields(wire.Message)
}


class Desk:
    """Judges requests, answers them and passes on what they bring.

    Parameters
    ----------
    settings : Settings
    session : str
        Identifier of the session.
    pack : EnginePack
    publisher : Publisher
    line : Line
        Tells how far the scan has come.
    decoding : Decoding
        Is given bundles.
    intake : Inlet
        Is given announcements.
    clock : Clock
    decoder : DecodeService

    Attributes
    ----------
    steering : Steering
        What commands have made of the session.
    busy : str or None
        Why only the clock and what was published can be asked for now.
    stop : Event
        Set once a command has ended the session.
    """

    def __init__(
        self,
        settings: Settings,
        session: str,
        pack: EnginePack,
        publisher: Publisher,
        line: Line,
        decoding: Decoding,
        intake: Inlet,
        clock: Clock,
        decoder: DecodeService,
    ) -> None:
        self._settings = settings
        self._session = session
        self._pack = pack
        self._publisher = publisher
        self._line = line
        self._decoding = decoding
        self._intake = intake
        self._announcements = Announcements(
            [*decoder.stimuli, *settings.calibration.null_stimuli],
            settings.estimate.final_at_s,
            tuple(settings.film.predictions),
        )
        self._clock = clock
        self._decoder = decoder
        self.steering = Steering(settings)
        self.busy: str | None = None
        self.stop = threading.Event()
        self._due: deque[Command] = deque()
        self._lock = threading.Lock()

    def answer(self, request: requests.AnyRequest) -> dict[str, Any]:
        """Answer one request of a client.

        Raises
        ------
        ProtocolError, BundleError
            The request cannot be met; the text says why.
        """
        now = self._clock.monotonic()
        if request.expires is not None and now > request.expires:
            raise Late(f"the request came {now - request.expires:.1f} s after its sender had given it up")
        if request.session not in (None, self._session):
            raise AnotherSession(f"the request is meant for session {request.session}, this is {self._session}")
        match request:
            case requests.Ping():
                return {"t_wall": self._clock.wall(), "t_mono": now}
            case requests.Snapshot():
                return {"messages": self._publisher.snapshot()}
            case requests.Replay():
                return self._publisher.replay(request.topic, request.since_seq)
        if self.busy is not None:
            raise Busy(self.busy)
        with self._lock:
            return self._answer(request)

    def _answer(self, request: requests.AnyRequest) -> dict[str, Any]:
        match request:
            case requests.Mode():
                return self._mode(request)
            case requests.Control():
                return self._control(request)
            case requests.CalibrationProgress():
                told: dict[str, Any] = {
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in msgspec.to_builtins(request).items()
                    if name in _TOLD
                }
                self._publisher.publish(wire.Calibration(**told))
                return {}
            case requests.Event():
                return self._event(request)
        raise AssertionError(request)  # answered before

    def open(self) -> None:
        """Take requests from here on, and carry out what rules have decided while there was no time for it."""
        self.busy = None
        while self._due:
            self.decided(self._due.popleft())

    def decided(self, command: Command) -> None:
        """Carry out what a rule of the protocol has decided, unless an interrupted session has done so; any thread."""
        if self.busy is not None:
            self._due.append(command)
            return
        with self._lock:
            done = self.steering.answered(command.token, command.command) is not None
            if done or (command.command == "pause" and self.steering.paused):
                return
            try:
                self._carry_out(command)
            except ProtocolError as error:  # the session is ending
                _log.info("%s: %s", command.token, error)

    def _mode(self, asked: requests.Mode) -> dict[str, Any]:
        kind = "recalibrate" if asked.mode == "calibrate" else "decode"
        answer = self.steering.answered(asked.token, kind)
        if answer is not None:
            return answer
        if kind == "decode":
            assert asked.bundle is not None
            return {"bundle": self.decode_with(asked.bundle, asked.last_run, asked.token)}
        return self._carry_out(self.steering.judge_recalibration(asked, self._line.progress))

    def _control(self, asked: requests.Control) -> dict[str, Any]:
        answer = self.steering.answered(asked.token, asked.command)
        if answer is not None:
            return answer
        return self._carry_out(self.steering.judge(asked, self._line.progress, self._decoder.categories))

    def _carry_out(self, command: Command) -> dict[str, Any]:
        """Journal a command, hand it on and tell of it."""
        self._intake.announced("command", command)
        _log.info("%s%s", command.command, f": {command.reason}" if command.reason else "")
        answer = self.steering.take(command)
        self._decoding.feedback.settings = self.steering.feedback
        self.tell_session("running")
        if self.steering.stopped:
            self.stop.set()
        return answer

    def tell_session(self, state: str) -> None:
        """Publish what the session is now."""
        steering = self.steering
        self._publisher.publish(
            wire.Session(
                state=state,
                mode="calibrate" if steering.bundle is None else "decode",
                participant=self._settings.session.participant,
                folder=session_folder(self._settings.session).name,
                pack=self._pack.name,
                bundle=self._decoding.bundle,
                categories=self._decoder.categories,
                calibration_runs=steering.calibration_runs,
                absent=self._decoder.absent,
                censor_fd_mm=self._settings.estimate.censor_fd_mm,
                paused=steering.paused,
                bad_runs=tuple(steering.bad_runs),
                calibration_from=steering.calibration_from,
                blinded=self._settings.blinding.allocation is not None,
            )
        )

    def _event(self, event: requests.Event) -> dict[str, Any]:
        doubts: list[str] = []
        if event.kind in ("amend", "cancel"):
            change = self._announcements.change(event)
            if self._announcements.repeated(change):
                return {}

            def judge(taken: Progress) -> None:
                doubts.extend(self._announcements.judge_change(change, taken, self._line.progress))

            self._intake.announced(event.kind, change, judge)
            self._announcements.take(change)
        else:
            item = announced(event)
            if self._announcements.repeated(item):
                return {}
            doubts += self._announcements.judge(item, self._line.progress)
            self._intake.announced(event.kind, item)
            self._announcements.take(item)
        if doubts:
            reason = "; ".join(doubts)
            _log.warning("%s", reason)
            self._publisher.publish(
                wire.Fault(
                    run=event.run,
                    part="experiment",
                    kind="announcement",
                    reason=reason,
                    degraded="it was taken as it is",
                    remedy="mend the experiment's script",
                )
            )
        return {"warnings": doubts}

    def decode_with(self, folder: str, last_run: int | None = None, token: str | None = None) -> str:
        """Let trials be decoded with a bundle from here on; return its identity.

        Parameters
        ----------
        folder : str
        last_run : int or None
            With which calibration is over; None: as it was.
        token : str or None
            Names the command.

        Raises
        ------
        BundleError
            It cannot be used in this session.
        """
        bundle = self.usable(folder)
        asked = BundleRequest(folder=folder, identity=bundle.identity, last_run=last_run, token=token)
        self._intake.announced("bundle", asked)
        self.steering.take(asked)
        self._decoding.ask(bundle)
        return bundle.identity

    def take_up(self, item: Input) -> None:
        """Take note of what was asked or announced before a crash."""
        match item:
            case Volume() | Skipped() | TrialOverdue():
                pass
            case Command() | BundleRequest():
                self.steering.take(item)
                self.steering.stopped = False  # who goes on with the session wants it to go on
                self._decoding.feedback.settings = self.steering.feedback
            case _:
                self._announcements.take(item)

    def load_again(self) -> None:
        """Load what an interrupted session decoded with, if it can still be used."""
        if self.steering.bundle is None:
            return
        try:
            self._decoding.ask(self.usable(self.steering.bundle.folder))
        except BundleError as error:  # a scan that goes on is worth more than its decoding
            remedy = "put the bundle back and ask for it again (mode)"
            self._publisher.publish(
                wire.Fault(part="decode", kind="bundle", reason=str(error), degraded="no scores", remedy=remedy)
            )

    def usable(self, folder: str) -> ParticipantBundle:
        """Open a bundle and hold it to the session.

        Raises
        ------
        BundleError
            It cannot be used in this session.
        """
        bundle = open_participant(Path(folder))
        wanted = expected_provenance(self._settings, self._pack)
        first = self._settings.decode.bundle
        if first is None or not same_betas(bundle, open_participant(first)):
            wanted["session"] = self._session  # the voxels of other visits lie elsewhere
        strange = strangeness(bundle, wanted)
        if strange:
            raise BundleError(f"{'; '.join(strange)}; calibrate in this session, or start it with decode.bundle")
        return bundle
