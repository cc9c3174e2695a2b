"""Killed at any moment, resumed, and nothing is different in the end."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.demo.processes import free_port
from rtdecode.errors import JournalError
from rtdecode.session.journal import read
from rtdecode.session.past import Past
from rtdecode.session.recording import session_folder
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Recorder, Rig, run_visit, settings_for, without_times

EXACT = ("run", "volume", "skipped", "beta")
DECODED = ("embedding", "score", "caption", "reconstruction")


def published(folder: Path, topic: str) -> list[wire.Message]:
    outputs = read(folder / "journal" / "outputs.journal")
    return [wire.unpack(r["topic"].encode(), r["payload"]) for r in outputs if r["topic"] == topic]


def content(messages: list[wire.Message]) -> list[tuple[object, ...]]:
    return [without_times(m) for m in messages]


def finals(messages: list[wire.Message]) -> dict[str | None, tuple[object, ...]]:
    """Final messages by trial, without their place in the order, which depends on when the decoder came to them."""
    return {m.trial: without_times(replace(m, seq=None)) for m in messages if m.final}


def tables(folder: Path) -> dict[str, list[str]]:
    """All tables; the last column of decoded trials is a latency, and their order that of decoding."""
    found = {}
    for path in sorted(folder.rglob("*.tsv")):
        lines = path.read_text().splitlines()
        if "decoded" in path.name:
            lines = sorted(line.rsplit("\t", 1)[0] for line in lines)
        found[path.name] = lines
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return run_visit(tmp_path_factory.mktemp("whole"), FakeClock())


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_session_ends_as_if_it_had_not_been(
    whole: tuple[Recorder, Path],
    tmp_path: Path,
    kill_at: Callable[[list[int], random.Random], None],
    seed: int,
) -> None:
    _, reference = whole
    records = sum(1 for name in ("inputs", "outputs") for _ in read(reference / "journal" / f"{name}.journal"))
    rng = random.Random(seed)
    kill_at(sorted(rng.sample(range(5, records), 3)), rng)
    _, folder = run_visit(tmp_path, FakeClock())
    for topic in EXACT:
        assert content(published(folder, topic)) == content(published(reference, topic))
    for topic in (*EXACT, *DECODED):
        assert [m.seq for m in published(folder, topic)] == list(range(len(published(folder, topic))))
    for topic in DECODED:
        own = published(folder, topic)
        assert len({(m.trial, m.revision) for m in own}) == len(own)
        assert finals(own) == finals(published(reference, topic)), topic
    assert tables(folder) == tables(reference)
    for path in reference.rglob("*_betas.nii.gz"):
        other = nib.load(folder / path.relative_to(reference))
        assert np.array_equal(np.asarray(nib.load(path).dataobj), np.asarray(other.dataobj), equal_nan=True)


def test_there_must_be_a_session_to_resume(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no session to resume"):
        Past(tmp_path)


def test_a_session_told_to_end_while_it_is_folded_again_is_left_to_be_resumed(
    whole: tuple[Recorder, Path], tmp_path: Path
) -> None:
    _, reference = whole
    settings = settings_for(tmp_path, PLAN)
    folder = session_folder(settings.session)
    shutil.copytree(reference, folder)
    inputs = (folder / "journal" / "inputs.journal").read_bytes()
    stop = threading.Event()

    class Impatient(Recorder):
        def send(self, topic: bytes, payload: bytes) -> None:
            super().send(topic, payload)
            if topic == b"heartbeat":
                stop.set()

    told = Impatient()
    rig = Rig(settings, FakeClock(), told, resume=True, stop=stop)
    assert not rig.begun
    assert [m.state for m in told.of(wire.Session)] == ["resuming"]
    assert len(told.of(wire.Heartbeat)) == 1
    rig.leave()
    assert (folder / "journal" / "inputs.journal").read_bytes() == inputs

    again = Rig(settings, FakeClock(), resume=True)
    assert again.begun
    again.finish()
    assert tables(folder) == tables(reference)
    assert content(published(folder, "beta")) == content(published(reference, "beta"))


class Daemons:
    """One daemon process after another over the same settings."""

    def __init__(self, settings: Path) -> None:
        self._settings = settings
        self._process = self._start()

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "rtdecode", "run", str(self._settings), *more])

    @property
    def pid(self) -> int:
        """Of the daemon that is running."""
        return self._process.pid

    def await_answer(self, client: wire.Client) -> None:
        while True:
            assert self._process.poll() is None
            try:
                client.ping()
            except TimeoutError:
                continue
            return

    def kill_and_resume(self, client: wire.Client) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._start("--resume")
        self.await_answer(client)


@pytest.mark.system
def test_a_real_process_is_killed_and_resumed_without_a_gap(tmp_path: Path) -> None:
    """The daemon itself, by SIGKILL, while its client and scanner live on."""
    (tmp_path / "export").mkdir()
    stream, requests = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    raw = {
        "session": {"participant": "sim", "output": "."},
        "scanner": {"export_dir": "export"},
        "publish": {"stream": stream, "requests": requests},
    }
    path = tmp_path / "settings.toml"
    path.write_text(tomli_w.dumps(raw))
    plan = VisitPlan(seed=5, calibration_runs=1, decoding_runs=0, trials_per_run=12, volumes_per_run=36)
    participant = make_participant(plan.seed, PROTOCOL, ResponseParameters(n_responsive=60))
    scanner = Scanner(plan, participant, tmp_path / "export", SystemClock())
    seen: list[wire.Message] = []
    with Daemons(path) as daemons, wire.Client(stream, requests, topics=["volume", "beta", "run"]) as client:

        def listen(volumes: int) -> None:
            while sum(isinstance(m, wire.Volume) for m in seen) < volumes:
                message = client.receive(0.5)
                if message is None:
                    client.catch_up()
                else:
                    seen.append(message)

        def after(run: int, volume: int) -> None:
            if volume in (9, 20):
                listen(volume - 1)
                daemons.kill_and_resume(client)

        def announce(message: dict[str, object]) -> None:
            client.event(**message)

        daemons.await_answer(client)
        client.catch_up()
        scanner.play(announce, on_volume=after)
        listen(plan.volumes_per_run)
        while not any(isinstance(m, wire.Run) and m.state == "ended" for m in seen):
            message = client.receive(0.5)
            if message is None:
                client.catch_up()
            else:
                seen.append(message)
    assert [m.volume for m in seen if isinstance(m, wire.Volume)] == list(range(plan.volumes_per_run))
    assert {m.trial for m in seen if isinstance(m, wire.Beta) and m.final} == {t.trial for t in plan.trials}
    for kind in (wire.Volume, wire.Beta, wire.Run):
        seqs = [m.seq for m in seen if isinstance(m, kind)]
        assert seqs == list(range(len(seqs)))
