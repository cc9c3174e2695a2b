"""`rtdecode run`: threads around the line.

    ingest   watches the folder, keeps every volume, fills the volume lane
    estimate takes from the volume lane: registration, GLM, betas (the `Line`)
    decode   takes from the picture lane and asks the decode worker (a process of its own)
    publish  owns the sockets (`Server`)

Each thread repeats one `*_once` method; tests call these directly, with a clock of their own.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rtdecode import client as wire
from rtdecode.acquire.source import Source
from rtdecode.bundle import EnginePack, open_participant
from rtdecode.clock import Clock
from rtdecode.decode.worker import DecodeService
from rtdecode.decoding import Decoding
from rtdecode.errors import BundleError, ProtocolError
from rtdecode.estimate.calibrated import Calibrated, expected_provenance, strangeness
from rtdecode.estimate.estimator import Estimator
from rtdecode.lanes import Closed, PictureLane, VolumeLane
from rtdecode.line import Line
from rtdecode.past import Input, Past
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher, Transport
from rtdecode.recording import Recording, session_name
from rtdecode.records import RunEnd, RunStart, TrialEvent, Volume
from rtdecode.settings import Settings

LANE_CAPACITY = 64
_LATEST = (("reconstruction", "picture"), ("caption", "caption"), ("score", ""))
"""Topics from the last that is published of a beta on, and the part of the pack without which there is none."""
DISK_LOW_BYTES = 2 << 30
_log = logging.getLogger(__name__)


class Daemon:
    """One session.

    Parameters
    ----------
    settings : Settings
    source : Source
        Where volumes come from.
    decoder : DecodeService
        The decode worker.
    pack : EnginePack
    recording : Recording
    transport : Transport
        Where messages go.
    clock : Clock
    calibrated : Calibrated, optional
        What `estimate.calibrated.calibration_of` returns.
    past : Past, optional
        Of the same session, which is to be resumed.
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        decoder: DecodeService,
        pack: EnginePack,
        recording: Recording,
        transport: Transport,
        clock: Clock,
        *,
        calibrated: Calibrated | None = None,
        past: Past | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._pack = pack
        self._categories = decoder.categories
        self._absent = decoder.absent
        self._recording = recording
        self._clock = clock
        self._started = clock.monotonic()
        self._heartbeat_due = self._started
        self._lane: VolumeLane[Input] = VolumeLane(LANE_CAPACITY)
        self._pictures = PictureLane()
        name = session_name(settings.session)
        self._publisher = Publisher(name, clock, transport, recording)
        bundle = settings.decode.bundle
        estimator = Estimator(settings.estimate, name, calibrated=calibrated, scratch=recording.scratch)
        estimator.warm_up()
        self._line = Line(settings, estimator, recording, self._publisher, self._pictures, clock)
        self._trials: dict[str, dict[str, Any]] = {}
        self._intake = threading.Lock()  # the journal and the lane hold inputs in the same order
        self._decoding = Decoding(
            decoder, self._pictures, recording, self._publisher, clock, lambda: self._publish_session("running")
        )
        self._transport = transport
        self._problem: str | None = None
        if self._absent:
            _log.warning("pack %s cannot make: %s", pack.name, ", ".join(self._absent))
        if past is not None:
            self._refold(past)
            bundle = Path(past.bundle) if past.bundle is not None else bundle
        self._publish_session("running")
        if bundle is not None:
            self._request_bundle(str(bundle))

    def _refold(self, past: Past) -> None:
        """Fold the inputs of an interrupted session again; what it had published stays as it was."""
        self._publisher.restore(past.outputs())
        with self._recording.refolding():
            for item in past.inputs(self._clock.monotonic()):
                if isinstance(item, TrialEvent):
                    self._trials[item.trial] = asdict(item)
                self._line.handle(item, 0)
        decided = self._recording.decided()
        last = next(topic for topic, part in _LATEST if part not in self._absent)
        waiting = [beta for beta in iter(lambda: self._pictures.get(0), None) if beta is not None]
        for beta in waiting:
            trial = beta.event.trial
            done = trial in decided if beta.final else self._publisher.has_said(last, trial, beta.revision)
            if not done:
                self._pictures.put(beta)
            elif beta.final:
                self._decoding.remember(beta)

    # requests (publish thread) ----------------------------------------------------------------------------

    def answer(self, request: requests.AnyRequest) -> dict[str, Any]:
        """Answer one request of a client.

        Raises
        ------
        ProtocolError, BundleError
            The request cannot be met; the text says why.
        """
        match request:
            case requests.Ping():
                return {"t_wall": self._clock.wall()}
            case requests.Snapshot():
                return {"messages": self._publisher.snapshot()}
            case requests.Replay():
                return self._publisher.replay(request.topic, request.since_seq)
            case requests.Mode():
                if request.mode == "calibrate" or request.bundle is None:
                    raise ProtocolError("this session is calibrated by its first runs; start another to do it again")
                return {"bundle": self._request_bundle(request.bundle)}
            case requests.Calibration():
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
        item: Input
        if event.kind == "run_start":
            item = RunStart(run=event.run, expected=event.expected_volumes, t_r_s=event.t_r_s)
        elif event.kind == "run_end":
            item = RunEnd(run=event.run, volumes=event.volumes)
        else:
            assert event.trial is not None
            assert event.onset_s is not None
            assert event.duration_s is not None
            item = TrialEvent(
                run=event.run,
                trial=event.trial,
                onset_s=event.onset_s,
                duration_s=event.duration_s,
                stimulus=event.stimulus,
                condition=event.condition,
            )
            if event.trial in self._trials:
                if self._trials[event.trial] == asdict(item):
                    return {}  # announced again after a lost answer
                raise ProtocolError(f"trial {event.trial!r} was announced before; trial names are unique")
            self._trials[event.trial] = asdict(item)
        with self._intake:
            self._recording.inputs.append(event.kind, **asdict(item))
            self._lane.put(item)
        return {}

    def _request_bundle(self, folder: str) -> str:
        bundle = open_participant(Path(folder))
        settings, wanted = self._settings, expected_provenance(self._settings, self._pack)
        if settings.decode.bundle != Path(folder):
            wanted["session"] = session_name(settings.session)  # the voxels of other visits lie elsewhere
        strange = strangeness(bundle, wanted)
        if strange:
            raise BundleError(f"{'; '.join(strange)}; calibrate in this session, or start it with decode.bundle")
        self._recording.inputs.append("bundle", folder=folder, identity=bundle.identity)
        self._decoding.ask(bundle)
        return bundle.identity

    def _publish_session(self, state: str) -> None:
        self._publisher.publish(
            wire.Session(
                state=state,
                mode="calibrate" if self._decoding.bundle is None else "decode",
                participant=self._settings.session.participant,
                folder=str(self._recording.folder.resolve()),
                pack=self._pack.name,
                bundle=self._decoding.bundle,
                categories=self._categories,
                calibration_runs=self._settings.calibration.runs,
                absent=self._absent,
                censor_fd_mm=self._settings.estimate.censor_fd_mm,
            )
        )

    # one turn of each thread --------------------------------------------------------------------------------

    def ingest_once(self) -> int:
        """Look at the folder once, keep what is new and hand it on; return how many items came."""
        arrivals = self._source.poll()
        if self._source.problem != self._problem:
            self._problem = self._source.problem
            if self._problem is not None:
                self._publisher.publish(
                    wire.Fault(part="acquire", reason=self._problem, degraded="no volumes arrive until it is mended")
                )
        for arrival in arrivals:
            item = arrival.item
            if isinstance(item, Volume):
                self._recording.keep(item)
            self._lane.wait_for_room()
            with self._intake:
                if isinstance(item, Volume):
                    self._recording.arrival(item)
                else:
                    self._recording.inputs.append("skipped", **asdict(item))
                self._lane.put(item)
        now = self._clock.monotonic()
        if now >= self._heartbeat_due:
            self._heartbeat_due = now + self._settings.publish.heartbeat_s
            self._watch_disk()
            self._recording.sync_if_due()
            self._publisher.publish(
                wire.Heartbeat(
                    lag=len(self._lane),
                    superseded=self._pictures.superseded,
                    rejected=self._transport.rejected,
                    uptime_s=now - self._started,
                    **self._decoding.health(),
                )
            )
        return len(arrivals)

    def _watch_disk(self) -> None:
        """Say that the disk is nearly full before it is; the scan itself then has what is left."""
        free = shutil.disk_usage(self._recording.folder).free
        if (free < DISK_LOW_BYTES) == self._recording.saving:
            return
        self._recording.saving = free < DISK_LOW_BYTES
        if self._recording.saving:
            reason = f"{free / 2**30:.1f} GiB left on the disk of {self._recording.folder}"
            self._publisher.publish(
                wire.Fault(part="disk", reason=reason, degraded="pictures are not kept; volumes and betas are")
            )

    def estimate_once(self, timeout_s: float) -> bool:
        """Take one item from the volume lane; False if none came.

        Raises
        ------
        Closed
            The session is ending and the lane is empty.
        """
        item = self._lane.get(timeout_s)
        if item is None:
            self._line.tick()
            return False
        self._line.handle(item, len(self._lane))
        return True

    def decode_once(self, timeout_s: float) -> bool:
        """Take one turn of `Decoding.once`."""
        return self._decoding.once(timeout_s)

    # the whole session ------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; then finish what has arrived and close the session."""
        threads = [
            self._thread("estimate", lambda: self.estimate_once(0.2)),
            self._thread("decode", lambda: self.decode_once(0.2)),
        ]
        while not stop.is_set():
            if not self.ingest_once():
                self._source.wait(self._settings.scanner.poll_s)
        self.ingest_once()
        self._decoding.end()
        self._lane.close()
        threads[0].join()
        self.close()
        threads[1].join()
        self._publish_session("ended")

    def close(self) -> None:
        """Finish the open run; no further betas will come."""
        self._line.finish()
        self._pictures.close()

    def _thread(self, name: str, once: Callable[[], bool]) -> threading.Thread:
        def repeat() -> None:
            while True:
                try:
                    once()
                except Closed:
                    return
                except Exception as error:  # a broken part must not take the recording of the scan with it
                    _log.exception("%s failed on one item", name)
                    reason = f"{type(error).__name__}: {error}"
                    self._publisher.publish(
                        wire.Fault(part=name, reason=reason, degraded="the item at hand was left out")
                    )

        thread = threading.Thread(target=repeat, name=name)
        thread.start()
        return thread
