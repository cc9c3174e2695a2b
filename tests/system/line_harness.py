"""The whole line in one thread, with a clock that moves only when somebody sleeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from calibration.calibrator import Calibrator
from calibration.client import CalibrationRun
from rtdecode import client as wire
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.bundle import open_pack
from rtdecode.daemon import Daemon
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.worker import LocalService
from rtdecode.lanes import Closed
from rtdecode.publish import requests
from rtdecode.recording import Recording
from rtdecode.settings import Settings, parse
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock

PROTOCOL = Protocol(shape=(32, 32, 12), voxel_mm=(6.8, 6.8, 10.0), t_r_s=1.5)
PLAN = VisitPlan(seed=5, calibration_runs=2, decoding_runs=1, trials_per_run=16, volumes_per_run=50)
Spoil = Callable[[int, int, Path], None]


class Recorder:
    """A transport that keeps everything: the socket seam without sockets."""

    rejected = 0

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
    """What `CalibrationRun` needs of a client, on top of what a recorder has heard so far."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def catch_up(self) -> None:
        pass

    def messages(self) -> Iterator[wire.Message]:
        return iter(list(self._recorder.messages))

    def calibration(self, **status: Any) -> None:
        self._recorder.request(requests.Calibration, **status)

    def mode(self, mode: str, bundle: str | None = None) -> None:
        self._recorder.request(requests.Mode, mode=mode, bundle=bundle)


def settings_for(out: Path, plan: VisitPlan) -> Settings:
    (out / "export").mkdir()
    plan.write_stimuli(out / "stimuli")
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": plan.seed},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0},
        "decode": {"stimuli": "stimuli"},
        "calibration": {"runs": plan.calibration_runs},
    }
    return parse(raw, root=out)


@contextmanager
def session(settings: Settings, clock: FakeClock) -> Iterator[tuple[Daemon, Recorder, Recording]]:
    """A daemon whose turns are taken whenever the clock is slept on."""
    pack = open_pack(settings.decode.pack)
    recorder = Recorder()
    recording = Recording(settings.session, "", clock)
    with closing(recording), FolderWatcher(settings.scanner, "sim-01", clock) as source:
        decoder = LocalService(Decoder(pack, stimuli=settings.decode.stimuli))
        daemon = Daemon(settings, source, decoder, pack, recording, recorder, clock)
        recorder.answer = daemon.answer

        def turn() -> None:
            while daemon.ingest_once():
                pass
            while daemon.estimate_once(0):
                pass
            while daemon.decode_once(0):
                pass

        clock.on_sleep = turn
        yield daemon, recorder, recording
        clock.on_sleep = lambda: None


def run_visit(
    out: Path, clock: FakeClock, plan: VisitPlan = PLAN, spoil: Spoil = lambda run, volume, export: None
) -> tuple[Recorder, Path]:
    """Scan, calibrate and decode a small visit at the scanner's pace; return what was said and the session folder.

    `spoil` is called after each volume is written and before the daemon looks.
    """
    settings = settings_for(out, plan)
    with session(settings, clock) as (daemon, recorder, recording):
        participant = make_participant(plan.seed, PROTOCOL, ResponseParameters(n_responsive=60))
        scanner = Scanner(plan, participant, settings.scanner.export_dir, clock, speed=1.0)

        def announce(message: dict[str, Any]) -> None:
            recorder.request(requests.Event, **message)

        def hold(run: int) -> None:
            clock.sleep(10.0)
            if run == plan.calibration_runs + 1:
                calibrate(settings, recorder)
                clock.sleep(1.0)

        scanner.play(announce, hold, lambda run, volume: spoil(run, volume, settings.scanner.export_dir))
        for _ in range(8):
            clock.sleep(1.0)
        daemon.close()
        with suppress(Closed):
            while daemon.decode_once(0):
                pass
    return recorder, recording.folder


def calibrate(settings: Settings, recorder: Recorder) -> None:
    """Calibrate on what the recorder has heard, as `rtdecode calibrate` does on the stream."""
    pack = open_pack(settings.decode.pack)
    decoder = Decoder(pack, stimuli=settings.decode.stimuli)
    calibrator = Calibrator(
        decoder.candidates,
        categories=decoder.stages.categories,
        prototypes=decoder.stages.prototypes,
        groups=decoder.stages.groups,
        leave_out=settings.calibration.leave_out,
        seed=settings.session.seed,
    )
    CalibrationRun(RecordedClient(recorder), calibrator, pack).run()  # type: ignore[arg-type]


def without_times(message: wire.Message) -> tuple[object, ...]:
    """Everything of a message that must be the same when the same inputs come again."""
    volatile = {"t_acquired", "t_received", "t_published", "stages", "lag", "uptime_s", "folder", "bundle", "note"}
    values = {name: value for name, value in vars(message).items() if name not in volatile}
    return (wire.topic_of(message), repr(sorted(values.items())))
