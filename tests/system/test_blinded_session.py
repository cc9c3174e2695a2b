"""A blinded session through the whole line: both arms alike, what tells them apart withheld, resumed, unblinded."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.blinding.allocation import Arm, write_seals
from rtdecode.demo.processes import free_port
from rtdecode.derivatives import read_table
from rtdecode.errors import SettingsError
from rtdecode.protocol_file import read_protocol
from rtdecode.publish import requests
from rtdecode.session.blind import open_blind, shown_in
from rtdecode.session.journal import read
from rtdecode.settings import Settings, parse
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.blinded import seal_for
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Recorder, Rig
from tests.system.test_resume import content, published

PLAN = VisitPlan(
    seed=5, calibration_runs=1, decoding_runs=1, trials_per_run=8, volumes_per_run=24, t_r_s=PROTOCOL.t_r_s
)
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def participant() -> Participant:
    return make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=120))


def settings_for(participant: Participant, out: Path, arm: Arm) -> Settings:
    (out / "export").mkdir(parents=True)
    participant.write_region(out / "region.nii.gz")
    block = {"condition": "regulate", "duration_s": 30.0, "feedback": "continuous"}
    protocol = {
        "format": 1, "name": "p", "version": "1", "task": "t", "t_r_s": PROTOCOL.t_r_s,
        "runs": [{"name": "regulation", "purpose": "feedback", "repeats": 2, "blocks": [block]}],
        "feedback": {
            "score": "region", "regions": ["visual"], "baseline_volumes": 4, "deadline_s": 60.0,
        },
        "sham": {"kind": "phase_scrambled"},
    }  # fmt: skip
    (out / "protocol.toml").write_text(tomli_w.dumps(protocol))
    (out / "key").write_text(KEY.hex())
    seal = seal_for(arm, KEY, "sim", read_protocol(out / "protocol.toml").hash)
    write_seals(out / "allocation.json", [seal])
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": 3, "protocol": "protocol.toml"},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling"},
        "estimate": {"regions": {"visual": "region.nii.gz"}},
        "blinding": {"allocation": "allocation.json", "key": "key"},
    }
    return parse(raw, root=out)


def scan(participant: Participant, out: Path, arm: Arm) -> tuple[Recorder, Path]:
    clock = FakeClock()
    settings = settings_for(participant, out, arm)
    rig = Rig(settings, clock)
    scanner = Scanner(PLAN, participant, settings.scanner.export_dir, clock, speed=1.0)
    scanner.play(lambda message: rig.request(requests.Event, **message), lambda run: clock.sleep(10.0))
    for _ in range(8):
        clock.sleep(1.0)
    return rig.recorder, rig.finish()


@pytest.fixture(scope="module")
def both(participant: Participant, tmp_path_factory: pytest.TempPathFactory) -> dict[Arm, tuple[Recorder, Path]]:
    arms: tuple[Arm, Arm] = ("real", "sham")
    return {arm: scan(participant, tmp_path_factory.mktemp(arm), arm) for arm in arms}


def test_both_arms_leave_the_same_traces(both: dict[Arm, tuple[Recorder, Path]]) -> None:
    (real, real_folder), (sham, sham_folder) = both["real"], both["sham"]
    traces = []
    for recorder, folder in both.values():
        sizes = Counter((r["kind"], len(r.get("envelope", b""))) for r in read(folder / "journal" / "inputs.journal"))
        sent = [
            (wire.topic_of(m), m.seq, m.run, m.volume) for m in recorder.messages if not isinstance(m, wire.Heartbeat)
        ]
        states = [(m.state, m.invalid, m.score, m.regions) for m in recorder.of(wire.Feedback)]
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        length = (folder / "journal" / "inputs.journal").stat().st_size
        traces.append((sizes, sent, states, files, length))
    assert traces[0] == traces[1]
    assert traces[0][0]["sealed", 48] > 30
    values = [[m.raw for m in recorder.of(wire.Feedback)] for recorder in (real, sham)]
    assert values[0] != values[1]
    assert real_folder != sham_folder


def test_what_beside_a_score_would_tell_its_arm_is_withheld(both: dict[Arm, tuple[Recorder, Path]]) -> None:
    for recorder, folder in both.values():
        assert all(m.regions == {} and m.parcels == {} for m in recorder.of(wire.Volume))
        assert not list(folder.rglob("*_desc-roi_timeseries.tsv"))
        assert all(m.blinded for m in recorder.of(wire.Session))
        for path in folder.rglob("*"):
            if path.suffix in (".tsv", ".json", ".toml"):
                assert "real" not in path.read_text().split()
        assert {m.protocol for m in recorder.messages} == {read_protocol(folder.parent / "protocol.toml").hash}


def test_a_killed_blinded_session_shows_what_it_would_have(
    both: dict[Arm, tuple[Recorder, Path]],
    participant: Participant,
    tmp_path: Path,
    kill_at: Callable[[list[int], random.Random], None],
) -> None:
    reference = both["sham"][1]
    records = sum(1 for name in ("inputs", "outputs") for _ in read(reference / "journal" / f"{name}.journal"))
    rng = random.Random(1)
    kill_at(sorted(rng.sample(range(20, records), 2)), rng)
    folder = scan(participant, tmp_path, "sham")[1]
    assert content(published(folder, "feedback")) == content(published(reference, "feedback"))


def test_the_key_opens_the_seal_and_the_journal_tells_of_it(
    both: dict[Arm, tuple[Recorder, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong").write_text(bytes(32).hex())
    told = {}
    for arm, (recorder, recorded) in both.items():
        folder = tmp_path / recorded.parent.name / recorded.name  # the other tests' stays as it was
        shutil.copytree(recorded.parent, folder.parent)
        journal = folder / "journal" / "inputs.journal"
        before = journal.read_bytes()
        command = ["protocol", "unblind", str(folder), "--reason", "the study is over", "--key"]
        assert main([*command, str(tmp_path / "wrong")]) == 2
        assert "expected the key that the allocation was sealed with" in capsys.readouterr().err
        assert journal.read_bytes() == before
        assert main([*command, str(folder.parent / "key")]) == 0
        assert f": {arm}; " in capsys.readouterr().out
        assert [r["reason"] for r in read(journal) if r["kind"] == "unblinded"] == ["the study is over"]
        rows, _ = read_table(folder / "journal" / "unblinded.tsv")
        told[arm] = rows
        column = {"real": "score_raw", "sham": "sham_raw"}[arm]
        shown = [m.raw for m in recorder.of(wire.Feedback) if m.raw is not None]
        np.testing.assert_array_equal([float(row[column]) for row in rows], shown)
    assert [row["score_raw"] for row in told["real"]] == [row["score_raw"] for row in told["sham"]]


def test_an_open_session_has_no_seal(tmp_path: Path, both: dict[Arm, tuple[Recorder, Path]]) -> None:
    folder = both["real"][1]
    found = shown_in(folder)
    assert len(found) == sum(m.raw is not None for m in both["real"][0].of(wire.Feedback))
    settings = parse({"session": {"participant": "x"}, "scanner": {"export_dir": "."}}, root=tmp_path)
    assert open_blind(settings.blinding, None, "x", "s", lambda *_: None) is None
    with pytest.raises(SettingsError, match="expected the folder of a recorded session"):
        shown_in(tmp_path)


@pytest.mark.system
def test_a_daemon_keeps_the_protocol_and_is_stopped_by_a_client(participant: Participant, tmp_path: Path) -> None:
    """The command itself: a blinded session is started, steered and ended, and not resumed with another protocol."""
    settings_for(participant, tmp_path, "sham")
    stream, asked = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    content = {
        "session": {"participant": "sim", "output": ".", "protocol": "protocol.toml"},
        "scanner": {"export_dir": "export"},
        "estimate": {"regions": {"visual": "region.nii.gz"}},
        "blinding": {"allocation": "allocation.json", "key": "key"},
        "publish": {"stream": stream, "requests": asked},
    }
    (tmp_path / "session.toml").write_text(tomli_w.dumps(content))
    command = [sys.executable, "-m", "rtdecode", "run", str(tmp_path / "session.toml")]
    with subprocess.Popen(command) as process, wire.Client(stream, asked, topics=["session"]) as client:
        while True:
            assert process.poll() is None
            try:
                client.control("pause", token="p", reason="a pause")
            except TimeoutError:
                continue
            break
        (told,) = (m for m in client.snapshot() if isinstance(m, wire.Session))
        assert (told.paused, told.blinded) == (True, True)
        assert told.protocol == read_protocol(tmp_path / "protocol.toml").hash
        with pytest.raises(wire.RequestError, match="paused already"):
            client.control("pause")
        client.control("stop")
        assert process.wait() == 0
    folder = tmp_path / "sub-sim_ses-01"
    assert (folder / "protocol.toml").read_bytes() == (tmp_path / "protocol.toml").read_bytes()
    kinds = [r["kind"] if r["kind"] != "command" else r["command"] for r in read(folder / "journal" / "inputs.journal")]
    assert kinds == ["session", "sources", "blinded", "pause", "stop"]
    text = (tmp_path / "protocol.toml").read_text()
    (tmp_path / "protocol.toml").write_text(text.replace('version = "1"', 'version = "2"'))
    again = subprocess.run([*command, "--resume", "--reopen"], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "allocation for protocol" in again.stderr
