"""Answers what clients ask; on the publish thread."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import msgspec

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.errors import BundleError, Busy, Late, ProtocolError
from rtdecode.estimate.calibrated import expected_provenance, strangeness
from rtdecode.packs import EnginePack, ParticipantBundle, open_participant
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.records import BundleRequest
from rtdecode.session.announcements import Announcements, announced
from rtdecode.session.decoding import Decoding
from rtdecode.session.inlet import Inlet
from rtdecode.session.line import Line
from rtdecode.settings import Settings

_log = logging.getLogger(__name__)
_TOLD = {spec.name for spec in dataclasses.fields(wire.Calibration)}


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
    announcements : Announcements
    clock : Clock

    Attributes
    ----------
    bundle : BundleRequest or None
        The bundle that was asked for last; while there is none, the session is calibrated.
    calibration_runs : int
        Runs 1 to this one calibrate.
    busy : str or None
        Why only the clock and what was published can be asked for now.
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
        announcements: Announcements,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._session = session
        self._pack = pack
        self._publisher = publisher
        self._line = line
        self._decoding = decoding
        self._intake = intake
        self._announcements = announcements
        self._clock = clock
        self.bundle: BundleRequest | None = None
        self.calibration_runs = settings.calibration.runs
        self.busy: str | None = None

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
        match request:
            case requests.Ping():
                return {"t_wall": self._clock.wall(), "t_mono": now}
            case requests.Snapshot():
                return {"messages": self._publisher.snapshot()}
            case requests.Replay():
                return self._publisher.replay(request.topic, request.since_seq)
        if self.busy is not None:
            raise Busy(self.busy)
        match request:
            case requests.Mode():
                if request.mode == "calibrate" or request.bundle is None:
                    raise ProtocolError("this session is calibrated by its first runs; start another to do it again")
                return {"bundle": self.decode_with(request.bundle, request.last_run)}
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

    def _event(self, event: requests.Event) -> dict[str, Any]:
        item = announced(event)
        if self._announcements.repeated(item):
            return {}
        doubts = self._announcements.judge(item, self._line.progress)
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

    def decode_with(self, folder: str, last_run: int | None = None) -> str:
        """Let trials be decoded with a bundle from here on; return its identity.

        Parameters
        ----------
        folder : str
        last_run : int or None
            With which calibration is over; None: as it was.

        Raises
        ------
        BundleError
            It cannot be used in this session.
        """
        bundle = self.usable(folder)
        asked = BundleRequest(folder=folder, identity=bundle.identity, last_run=last_run)
        self._intake.announced("bundle", asked)
        self.take_up(asked)
        self._decoding.ask(bundle)
        return bundle.identity

    def take_up(self, asked: BundleRequest) -> None:
        """Take note of a bundle that was asked for, now or before a crash."""
        self.bundle = asked
        if asked.last_run is not None:
            self.calibration_runs = min(asked.last_run, self.calibration_runs)

    def usable(self, folder: str) -> ParticipantBundle:
        """Open a bundle and hold it to the session.

        Raises
        ------
        BundleError
            It cannot be used in this session.
        """
        bundle = open_participant(Path(folder))
        wanted = expected_provenance(self._settings, self._pack)
        if self._settings.decode.bundle != Path(folder):
            wanted["session"] = self._session  # the voxels of other visits lie elsewhere
        strange = strangeness(bundle, wanted)
        if strange:
            raise BundleError(f"{'; '.join(strange)}; calibrate in this session, or start it with decode.bundle")
        return bundle
