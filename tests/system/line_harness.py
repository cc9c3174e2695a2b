"""The whole line in one thread, with a clock that moves only when somebody sleeps."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from calibration.session_trials import calibrator_for
from calibration.visit_client import TOPICS, CalibrationRun
from rtdecode import client as wire
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.service import DecodeService, LocalService
from rtdecode.errors import SettingsError
from rtdecode.estimate.calibrated import calibration_of
from rtdecode.packs import EnginePack, open_pack
from rtdecode.protocol_file import read_protocol
from rtdecode.publish import requests
from rtdecode.session.daemon import Daemon
from rtdecode.session.films import open_films
from rtdecode.session.lanes import Closed
from rtdecode.session.past import Past
from rtdecode.session.recording import Recording, session_folder
from rtdecode.settings import Settings, parse
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock

PROTOCOL = Protocol(shape=(32, 32, 12), voxel_mm=(6.8, 6.8, 10.0), t_r_s=1.5)
PLAN = VisitPlan(seed=5, calibration_runs=2, decoding_runs=1, trials_per_run=16, volumes_per_run=50)
Spoil = Callable[[int, int, Path], None]
Service = Callable[[EnginePack, Settings], DecodeService]


class Recorder:
    """A transport that keeps everything: the socket seam without sockets."""

    rejected = 0
    strangers = 0
    unsent = 0
    broken = None

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []
        self.answer: Callable[[requests.AnyRequest], dict[str, Any]] | None = None
        self._ids = itertools.count(1)

    def send(self, topic: bytes, payload: bytes) -> None:
        self.messages.append(wire.unpack(topic, payload))

    def request(self, kind: type[requests.AnyRequest], /, **fields: Any) -> dict[str, Any]:
        assert self.answer is not None
        return self.answer(kind(v=1, id=next(self._ids), **fields))

    def of(self, kind: type[wire.Message]) -> list[Any]:
        return [m for m in self.messages if type(m) is kind]


class RecordedClient:
    """What `CalibrationRun` needs of a client, in the daemon's own process."""

    def __init__(self, request: Callable[..., dict[str, Any]]) -> None:
        self._request = request
        self._last = False

    def catch_up(self) -> None:
        pass

    def messages(self) -> Iterator[wire.Message]:
        missed = sorted(page for topic in TOPICS for page in self._replayed(topic))
        for place, (_, topic, payload) in enumerate(missed, start=1):
            self._last = place == len(missed)
            yield wire.unpack(topic.encode(), payload)

    def snapshot(self) -> list[wire.Message]:
        return [wire.unpack(topic.encode(), payload) for topic, payload in self._request(requests.Snapshot)["messages"]]

    def pending(self) -> bool:
        return not self._last

    def _replayed(self, topic: str) -> Iterator[tuple[int, str, bytes]]:
        answer: dict[str, Any] = {"next_seq": 0, "more": True}
        while answer["more"]:
            answer = self._request(requests.Replay, topic=topic, since_seq=answer["next_seq"])
            for place, payload in zip(answer["places"], answer["messages"], strict=True):
                yield place, topic, payload

    def calibration(self, **status: Any) -> None:
        self._request(requests.CalibrationProgress, **status)

    def mode(self, mode: str, bundle: str, last_run: int | None = None, *, session: str) -> None:
        self._request(requests.Mode, mode=mode, bundle=bundle, last_run=last_run, session=session)


def settings_for(out: Path, plan: VisitPlan, **sections: dict[str, Any]) -> Settings:
    (out / "export").mkdir()
    plan.write_stimuli(out / "stimuli")
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": plan.seed},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling"},
        "estimate": {"censor_fd_mm": 2.0},  # every early beta comes, whatever jerks there are
        "decode": {"stimuli": "stimuli"},
        "calibration": {"runs": plan.calibration_runs},
        "feedback": {"score": "category", "target": "face", "deadline_s": 600.0},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return parse(raw, root=out)


def in_process(pack: EnginePack, settings: Settings) -> DecodeService:
    """A decode service without a process of its own."""
    return LocalService(load_decoder(pack, settings.decode))


class Killed(BaseException):
    """The process is gone: nothing catches this but the rig."""


class Rig:
    """A daemon whose turns are taken whenever the clock is slept on, and which is started again when it is killed.

    Parameters
    ----------
    settings : Settings
    clock : FakeClock
    recorder : Recorder, optional
    service : callable
        Makes the decode service.
    decodes : int
        Items that it works on each time the clock is slept on.
    resume : bool
        Go on with a session that is there.
    stop : Event, optional
        Tells the daemon to end while it resumes.

    Attributes
    ----------
    begun : bool
        Whether the session is under way.
    """

    def __init__(
        self,
        settings: Settings,
        clock: FakeClock,
        recorder: Recorder | None = None,
        *,
        service: Service = in_process,
        decodes: int = sys.maxsize,
        resume: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._service = service
        self._decodes = decodes
        self._stop = stop
        self.recorder = recorder or Recorder()
        self.restarts = 0
        self._start(resume=resume)
        clock.on_sleep = self._turn

    def request(self, kind: type[requests.AnyRequest], /, **fields: Any) -> dict[str, Any]:
        """Ask the daemon, and ask again if it died over it, as a client does."""
        while True:
            try:
                return self.recorder.request(kind, **fields)
            except Killed:
                self._restart()

    def finish(self) -> Path:
        """End the session; return its folder."""
        while True:
            try:
                self._daemon.close()
                with suppress(Closed):
                    while self._daemon.decode_once(0):
                        pass
                break
            except Killed:
                self._restart()
        self.leave()
        return self._recording.folder

    def leave(self) -> None:
        """Close what the daemon was given, whatever has become of the session."""
        self._recording.close()
        self._source.close()
        self._decoder.close()
        self._clock.on_sleep = lambda: None

    def _start(self, *, resume: bool) -> None:
        settings, clock = self._settings, self._clock
        pack = open_pack(settings.decode.pack)
        calibrated = calibration_of(settings, pack)
        protocol = None if settings.session.protocol is None else read_protocol(settings.session.protocol)
        past = Past(session_folder(settings.session)) if resume else None
        told: dict[str, Any] = {"calibration": {"runs": settings.calibration.runs}}
        if settings.decode.stimuli is not None:
            told["decode"] = {"stimuli": str(settings.decode.stimuli)}
        if settings.film.predictions:
            predictions = {name: str(path) for name, path in settings.film.predictions.items()}
            told["film"] = {"parcels": settings.film.parcels, "predictions": predictions}
            told["estimate"] = {"parcels": {name: str(path) for name, path in settings.estimate.parcels.items()}}
        text = tomli_w.dumps(told)
        self._recording = Recording(settings.session, text, clock, resume=resume)
        known = past.runs() if past else ()
        self._source = FolderWatcher(settings.scanner, self._recording.session, clock, known=known)
        self._decoder = self._service(pack, settings)
        self._daemon = Daemon(
            settings,
            self._source,
            self._decoder,
            pack,
            self._recording,
            self.recorder,
            clock,
            calibrated=calibrated,
            films=open_films(settings.film, None if protocol is None else protocol.film),
            protocol=protocol,
        )
        self.recorder.answer = self._daemon.desk.answer
        try:
            self.begun = self._daemon.begin(past, self._stop)
        except SettingsError:
            self.leave()
            raise

    def _restart(self) -> None:
        while True:
            self.restarts += 1
            self._recording.close()
            self._source.close()
            self._decoder.close()
            try:
                self._start(resume=True)
            except Killed:
                continue
            return

    def _turn(self) -> None:
        try:
            while self._daemon.ingest_once():
                pass
            while self._daemon.estimate_once(0):
                pass
            for _ in range(self._decodes):
                if not self._daemon.decode_once(0):
                    break
            self._daemon.watch_once()
        except Killed:
            self._restart()


def run_visit(
    out: Path,
    clock: FakeClock,
    plan: VisitPlan = PLAN,
    spoil: Spoil = lambda run, volume, export: None,
    service: Service = in_process,
    decodes: int = sys.maxsize,
    **sections: dict[str, Any],
) -> tuple[Recorder, Path]:
    """Scan, calibrate and decode a small visit at the scanner's pace; return what was said and the session folder.

    `spoil` is called after each volume is written and before the daemon looks; `service` and `decodes` are as of `Rig`;
    `sections` add to the settings.
    """
    settings = settings_for(out, plan, **sections)
    rig = Rig(settings, clock, service=service, decodes=decodes)
    participant = make_participant(plan.seed, PROTOCOL, ResponseParameters(n_responsive=60))
    scanner = Scanner(plan, participant, settings.scanner.export_dir, clock, speed=1.0)

    def announce(message: dict[str, Any]) -> None:
        rig.request(requests.Event, **message)

    def hold(run: int) -> None:
        clock.sleep(10.0)
        if plan.calibration_runs and run == plan.calibration_runs + 1:
            calibrate(settings, rig)
            clock.sleep(1.0)

    scanner.play(announce, hold, lambda run, volume: spoil(run, volume, settings.scanner.export_dir))
    for _ in range(8):
        clock.sleep(1.0)
    return rig.recorder, rig.finish()


def calibrate(settings: Settings, rig: Rig) -> None:
    """Calibrate as `rtdecode calibrate` does on the stream."""
    pack = open_pack(settings.decode.pack)
    client: Any = RecordedClient(rig.request)
    CalibrationRun(client, calibrator_for(settings, pack), pack, session_folder(settings.session)).run()


def without_times(message: wire.Message) -> tuple[object, ...]:
    """Everything of a message that must be the same when the same inputs come again."""
    volatile = {"t_acquired", "t_received", "t_published", "stages", "lag", "uptime_s", "folder", "bundle", "note"}
    volatile |= {"decode_ms", "session", "late_s"}
    values = {name: value for name, value in vars(message).items() if name not in volatile}
    return (wire.topic_of(message), repr(sorted(values.items())))
