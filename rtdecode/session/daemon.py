"""`rtdecode run`: threads around the line.

    ingest   watches the folder, keeps every volume, fills the volume lane
    estimate takes from the volume lane: registration, GLM, betas (the `Line`)
    decode   takes betas, then volumes, that wait and asks the decode worker (a process of its own)
    watch    sends heartbeats and tells what is broken, whatever the others do (the `Watch`)
    publish  owns the sockets (`Server`) and answers requests (the `Desk`)

Each thread repeats one `*_once` method; tests call these directly, with a clock of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from msgspec import structs

from rtdecode import client as wire
from rtdecode.acquire.source import Source
from rtdecode.clock import Clock
from rtdecode.decode.service import DecodeService
from rtdecode.decoded import TRIAL_KINDS, Prediction, topic_of
from rtdecode.errors import JournalError, ProtocolError
from rtdecode.estimate.calibrated import Calibrated
from rtdecode.estimate.estimator import Estimator
from rtdecode.packs import EnginePack
from rtdecode.protocol_file import Protocol
from rtdecode.publish.publisher import Publisher, Transport
from rtdecode.records import Skipped, Volume
from rtdecode.session.blind import open_blind
from rtdecode.session.decoding import Decoding
from rtdecode.session.desk import Desk
from rtdecode.session.feedback import TrialFeedback, targets_of
from rtdecode.session.films import Films
from rtdecode.session.health import Watch
from rtdecode.session.inlet import Inlet
from rtdecode.session.lanes import Closed, DecodeLanes
from rtdecode.session.line import Line
from rtdecode.session.past import Past, sources
from rtdecode.session.recording import Recording
from rtdecode.settings import Settings

PROGRESS_S = 5.0
"""Time between two lines on what keeps the daemon busy."""
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
    films : Films, optional
        What `open_films` returns.
    protocol : Protocol, optional
        That of the settings.

    Attributes
    ----------
    desk : Desk
        Answers requests.
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
        films: Films | None = None,
        protocol: Protocol | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._decoder = decoder
        self._recording = recording
        self._transport = transport
        self._clock = clock
        self._sources = sources(settings, {} if films is None else films.identities())
        self._started = clock.monotonic()
        self._intake = Inlet(recording)
        self._waiting = DecodeLanes()
        self._publisher = publisher = Publisher(
            recording.session, clock, transport, recording, None if protocol is None else protocol.hash
        )
        self._blind = open_blind(
            settings.blinding,
            protocol,
            settings.session.participant,
            recording.session,
            lambda place, envelope: recording.decision("sealed", place=place, envelope=envelope),
        )
        estimator = Estimator(
            settings.estimate,
            recording.session,
            calibrated=calibrated,
            scratch=recording.scratch,
            calibration_runs=settings.calibration.runs,
        )
        _log.info("compiling the inner loops: seconds, or a minute at the first start on a machine")
        estimator.warm_up()
        self._line = Line(
            settings,
            estimator,
            recording,
            publisher,
            self._waiting,
            clock,
            predicts=decoder.window > 0,
            films=films,
            blind=self._blind,
            decide=lambda command: self.desk.decided(command),
        )

        self._decoding = Decoding(
            decoder,
            self._waiting,
            recording,
            publisher,
            clock,
            lambda: self.desk.tell_session("running"),
            settings.publish.picture,
            TrialFeedback(settings.feedback, self._blind, targets_of(settings.decode.pool, pack)),
        )
        self.desk = Desk(
            settings,
            recording.session,
            pack,
            publisher,
            self._line,
            self._decoding,
            self._intake,
            clock,
            decoder,
        )
        self._watch = Watch(
            source,
            self._line,
            decoder,
            recording,
            self._beat,
            publisher.publish,
            clock,
            settings.publish.heartbeat_s,
            self._decoding.late_s,
        )
        self.desk.busy = "the session begins"
        if decoder.absent:
            _log.warning("pack %s cannot make: %s", pack.name, ", ".join(decoder.absent))

    def begin(self, past: Past | None = None, stop: threading.Event | None = None) -> bool:
        """Announce the session; fold an interrupted one again.

        Returns
        -------
        bool
            False if `stop` was set while the interrupted session was folded: it is left as it was, to be resumed.

        Raises
        ------
        BundleError
            The bundle of the settings cannot be used.
        JournalError, SettingsError
            A volume that was kept cannot be read; a prediction, mask or label image is another than it was.
        """
        if past is not None:
            past.check_sources(self._sources)
            if not self._refold(past, stop or threading.Event()):
                return False
        else:
            if self._sources:
                self._recording.decision("sources", hashes=self._sources)
            if self._blind is not None:
                self._recording.decision("blinded", **structs.asdict(self._blind.seal))
            if self._settings.decode.bundle is not None:
                self.desk.decode_with(str(self._settings.decode.bundle))
        self.desk.open()
        self.desk.tell_session("running")
        return True

    def _refold(self, past: Past, stop: threading.Event) -> bool:
        """Fold an interrupted session's inputs again unless told to stop; what it has published stays as it was."""
        self._publisher.restore(past.outputs())
        self.desk.tell_session("resuming")
        told_at = self._clock.monotonic()
        with self._recording.refolding():
            for place, item in enumerate(past.inputs(told_at)):
                if stop.is_set():
                    return False
                self.desk.busy = f"the session is being resumed: {place} of {len(past)} records"
                self.desk.take_up(item)
                try:
                    self._line.handle(item, 0)
                except Exception as error:  # it failed live as well, and the session went on
                    self._tell_failed("estimate", error)
                self._watch.once()
                if self._clock.monotonic() - told_at >= PROGRESS_S:
                    told_at = self._clock.monotonic()
                    _log.info("%s", self.desk.busy)
        self._take_up()
        self.desk.load_again()
        return True

    def _take_up(self) -> None:
        """Leave of what waits for the decode worker what an interrupted session has not published."""
        decided = self._recording.decided()
        last = [topic_of(kind) for kind in TRIAL_KINDS if kind.absent_as not in self._decoder.absent][-1]
        pictures, volumes = self._waiting.pictures, self._waiting.volumes
        for beta in [beta for beta in iter(lambda: pictures.get(0), None) if beta is not None]:
            trial = beta.event.trial
            done = trial in decided if beta.final else self._publisher.has_said(last, trial, beta.revision)
            if not done:
                pictures.put(beta)
            elif beta.final:
                self._decoding.remember(beta)
        topic = topic_of(Prediction)
        while (volume := volumes.oldest) and self._publisher.has_said(topic, volume.stamp.run, volume.stamp.volume):
            volumes.get(0)
            self._decoding.pass_by(volume)

    # one turn of each thread --------------------------------------------------------------------------------

    def ingest_once(self) -> int:
        """Look at the folder once, keep what is new and hand it on; return how many items came.

        Raises
        ------
        JournalError
            The disk has refused volumes for so long that no more can be held.
        """
        with self._watch.turn("ingest"):
            arrivals = self._source.poll()
        for arrival in arrivals:
            with self._watch.turn("ingest"):  # many that wait for the estimate one after another are not stuck
                self._take_in(arrival.item)
        with self._watch.turn("ingest"):
            self._recording.sync_if_due()
        return len(arrivals)

    def _take_in(self, item: Volume | Skipped) -> None:
        """Keep one item and hand it on; a volume that this fails on is missing, and named."""
        try:
            self._intake.scanned(item)
        except JournalError:
            raise
        except Exception as error:
            self._tell_failed("acquire", error)
            if isinstance(item, Volume):
                why = f"it could not be kept: {type(error).__name__}: {error}"
                stamp = item.stamp
                self._intake.scanned(Skipped(run=stamp.run, volume=stamp.volume, path=item.path, reason=why))

    def watch_once(self) -> bool:
        """Look at what may be broken and send a heartbeat, if one is due."""
        return self._watch.once()

    def estimate_once(self, timeout_s: float) -> bool:
        """Take one item from the volume lane; False if none came.

        Raises
        ------
        Closed
            The session is ending and the lane is empty.
        """
        item = self._intake.lane.get(timeout_s)
        if item is None:
            self._line.tick()
            return False
        with self._watch.turn("estimate"):
            self._line.handle(item, len(self._intake.lane))
        return True

    def decode_once(self, timeout_s: float) -> bool:
        """Take one turn of `Decoding.once`."""
        return self._decoding.once(timeout_s)

    def _beat(self) -> wire.Heartbeat:
        return wire.Heartbeat(
            lag=len(self._intake.lane),
            predict_lag=len(self._waiting.volumes),
            superseded=self._waiting.pictures.superseded,
            rejected=self._transport.rejected,
            strangers=self._transport.strangers,
            unsent=self._transport.unsent,
            uptime_s=self._clock.monotonic() - self._started,
            every_s=self._settings.publish.heartbeat_s,
            **self._decoding.health(),
        )

    # the whole session ------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or a command ends the session; then finish what has arrived and close the session.

        Raises
        ------
        JournalError
            The disk has refused volumes for so long that no more can be held.
        ProtocolError
            The stream broke.
        """
        done = threading.Event()
        estimate = self._thread("estimate", lambda: self.estimate_once(0.2))
        decode = self._thread("decode", lambda: self.decode_once(0.2))
        watch = threading.Thread(target=self._keep_watching, args=(done,), name="watch")
        watch.start()
        try:
            while not (stop.is_set() or self.desk.stop.is_set()):
                if self._transport.broken is not None:
                    raise ProtocolError(f"the stream broke: {self._transport.broken}")
                if not self._ingest_safely():
                    self._source.wait(self._settings.scanner.poll_s)
            self._ingest_safely()
        finally:
            self._end(estimate, decode)
            done.set()
            watch.join()
            self.desk.tell_session("ended")

    def _ingest_safely(self) -> int:
        try:
            came = self.ingest_once()
        except JournalError:
            raise
        except Exception as error:  # what one look fails on must not take the next one with it
            if self._watch.failure is None:
                _log.exception("the export folder could not be looked at")
            self._watch.failure = f"{type(error).__name__}: {error}"
            return 0
        self._watch.failure = None
        return came

    def _end(self, estimate: threading.Thread, decode: threading.Thread) -> None:
        self.desk.tell_session("ending")
        self._decoding.end()
        self._intake.close()
        self._await(estimate, lambda: f"{len(self._intake.lane)} inputs wait to be estimated")
        self.close()
        pictures, volumes = self._waiting.pictures, self._waiting.volumes
        self._await(decode, lambda: f"{len(pictures)} trials and {len(volumes)} volumes wait to be decoded")

    def _await(self, thread: threading.Thread, what: Callable[[], str]) -> None:
        while thread.is_alive():
            _log.info("ending: %s", what())
            thread.join(PROGRESS_S)

    def close(self) -> None:
        """Finish the open run; no further betas will come."""
        self._line.finish()
        self._waiting.close()

    def _keep_watching(self, done: threading.Event) -> None:
        while not done.wait(self._settings.publish.heartbeat_s / 4):
            try:
                self._watch.once()
            except Exception:  # the heartbeat goes on
                _log.exception("one look at the daemon's health failed")

    def _thread(self, name: str, once: Callable[[], bool]) -> threading.Thread:
        def repeat() -> None:
            while True:
                try:
                    once()
                except Closed:
                    return
                except Exception as error:  # a broken part must not take the recording of the scan with it
                    self._tell_failed(name, error)

        thread = threading.Thread(target=repeat, name=name)
        thread.start()
        return thread

    def _tell_failed(self, part: str, error: Exception) -> None:
        _log.error("%s failed on one item", part, exc_info=error)
        self._publisher.publish(
            wire.Fault(
                part=part,
                kind=type(error).__name__,
                reason=f"{type(error).__name__}: {error}",
                degraded="the item at hand was left out",
                remedy="look at the daemon's log",
            )
        )
