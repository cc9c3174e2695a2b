"""Answers what clients ask; on the publish thread."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

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
                return {"bundle": self.decode_with(request.bundle)}
            case requests.CalibrationProgress():
                self._publisher.publish(
                    wire.Calibration(
                        trials=request.trials,
                        percentile=request.percentile,
                        interval=tuple(request.interval),
                        p_value=request.p_value,
                        note=request.note,
                    )
                )
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

    def decode_with(self, folder: str) -> str:
        """Let trials be decoded with a bundle from here on; return its identity.

        Raises
        ------
        BundleError
            It cannot be used in this session.
        """
        bundle = self.usable(folder)
        asked = BundleRequest(folder=folder, identity=bundle.identity)
        self._intake.announced("bundle", asked)
        self.bundle = asked
        self._decoding.ask(bundle)
        return bundle.identity

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
