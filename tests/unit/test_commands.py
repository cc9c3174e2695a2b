"""What the command line says when something is wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import tomli_w

from rtdecode.__main__ import main
from rtdecode.check import Checked, check
from rtdecode.settings import Settings, parse
from tests.conftest import FakeClock


def raw(**changes: object) -> dict[str, object]:
    return {
        "session": {"participant": "01"},
        "scanner": {"export_dir": "export"},
        "publish": {"stream": "tcp://127.0.0.1:0", "requests": "tcp://127.0.0.1:0"},
        **changes,
    }


def settings(root: Path, **changes: object) -> Settings:
    return parse(raw(**changes), root=root)


def problems(findings: list[Checked]) -> dict[str, str]:
    return {f.subject: f.problem for f in findings if f.problem}


@pytest.fixture
def clock() -> FakeClock:
    import time

    clock = FakeClock()
    clock.now = time.time() - 1_700_000_000.0
    return clock


def test_all_is_well(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "export").mkdir()
    assert problems(check(settings(tmp_path), clock)) == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export"]


def test_a_folder_on_a_network_mount_is_said_to_be_polled(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    assert "watched by file events" in check(settings(tmp_path), clock)[0].detail
    monkeypatch.setattr("rtdecode.check.is_remote", lambda folder: True)
    assert "polled" in check(settings(tmp_path), clock)[0].detail


def test_everything_that_would_fail_is_found_in_one_go(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "sessions" / "sub-01_ses-01").mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = settings(
            tmp_path,
            decode={"pack": "no-such-pack", "bundle": "no-such-bundle", "stimuli": "no-such-folder"},
            publish={"stream": f"tcp://127.0.0.1:{port}"},
        )
        found = problems(check(wrong, clock))
    assert set(found) == {
        "export folder", "session folder", "engine pack", "participant bundle", "decode.stimuli", "stream address",
    }  # fmt: skip
    assert "another daemon" in found["stream address"]


def test_masks_that_are_not_there_are_found_before_the_scan(
    tmp_path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").mkdir()
    estimate = {"mask": "m.nii", "motion_file": "motion", "regions": {"ffa": "f.nii"}}
    wanted = {"estimate.mask", "estimate.motion_file", "estimate.regions.ffa"}
    assert set(problems(check(settings(tmp_path, estimate=estimate), clock))) == wanted
    path = tmp_path / "session.toml"
    path.write_text(tomli_w.dumps(raw(estimate=estimate, decode={"stimuli": "pictures"})))
    assert main(["run", str(path)]) == 2
    said = capsys.readouterr().err
    for name in (*wanted, "decode.stimuli"):
        assert f"$.{name}: expected a" in said
    assert not (tmp_path / "sessions").exists()  # the session can be started once this is mended


def test_clocks_that_disagree_are_found(tmp_path: Path, clock: FakeClock) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "a.dcm").write_bytes(b"")
    os.utime(export / "a.dcm", (clock.wall() + 60, clock.wall() + 60))
    assert "60 s ahead" in problems(check(settings(tmp_path), clock))["export folder"]
    clock.now -= 600
    assert "synchronisation" in problems(check(settings(tmp_path), clock))["clocks"]


def test_no_bundle_and_no_calibration_cannot_decode(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "export").mkdir()
    assert "participant bundle" in problems(check(settings(tmp_path, calibration={"runs": 0}), clock))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (raw(scanner={"export_dir": "export", "poll": 1}), "$.scanner.poll: no such setting"),
        (raw(), "$.scanner.export_dir: expected a folder"),
        (raw(scanner={"export_dir": "."}, decode={"pack": "nowhere"}), "engine pack 'nowhere'"),
    ],
    ids=["wrong setting", "missing folder", "missing pack"],
)
def test_run_does_not_start_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, object], said: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(content))
    assert main(["run", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "sessions").exists()


def test_check_exits_with_2_when_something_would_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(raw()))
    assert main(["check", str(path)]) == 2
    assert "export folder" in capsys.readouterr().out
    (tmp_path / "export").mkdir()
    assert main(["check", str(path)]) == 0
    assert "ready to scan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speed", "0"], "--speed"),
        (["--data", "nowhere"], "--data"),
        (["--calibrate-runs", "1-4"], "--calibrate-runs goes with --data"),
        (["--data", ".", "--calibrate-runs", "2-4"], "expected the first runs"),
        (["--data", ".", "--shuffle-labels"], "simulated"),
        (["--out", "."], "exists already"),
    ],
)
def test_demo_refuses_what_it_cannot_do(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == 2
    assert said in capsys.readouterr().err
