from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rtdecode.simulate import cli, participant
from rtdecode.simulate.visit import VisitPlan
from tests.unit import simulate_small

SHORT = partial(VisitPlan, trials_per_run=4, volumes_per_run=14)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    return parser.parse_args(["simulate", *arguments])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "VisitPlan", SHORT)
    monkeypatch.setattr(participant, "make_participant", lambda seed: simulate_small.participant())


@pytest.mark.usefixtures("short")
def test_a_visit_is_written_with_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(
        "--out", str(tmp_path / "a" / "export"), "--runs", "2", "--speed", "max", "--stimuli", str(tmp_path / "png")
    )
    assert arguments.handler(arguments) == 0
    assert len(list((tmp_path / "a" / "export").glob("001_*.dcm"))) == 28
    assert len(list((tmp_path / "png").glob("*.png"))) == 8
    assert "28/28" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_trials_are_announced_to_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, *, requests: str, topics: tuple[str, ...]) -> None:
            assert (requests, topics) == ("tcp://127.0.0.1:9", ())

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            told.append({"kind": "closed"})

        def event(self, **what: Any) -> None:
            told.append(what)

    monkeypatch.setattr(cli, "Client", Recorder)
    arguments = parse("--out", str(tmp_path), "--runs", "1", "--speed", "max", "--requests", "tcp://127.0.0.1:9")
    assert arguments.handler(arguments) == 0
    assert [message["kind"] for message in told] == ["run_start", *["trial"] * 4, "run_end", "closed"]


@pytest.mark.parametrize("text", ["0", "-2", "fast", "nan"])
def test_a_speed_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--out", "x", f"--speed={text}")
    assert "positive number or max" in capsys.readouterr().err


def test_defaults_are_real_time() -> None:
    arguments = parse("--out", "x")
    assert (arguments.speed, arguments.seed, arguments.requests) == (1.0, 0, None)
    assert parse("--out", "x", "--speed", "max").speed == "max"
    assert parse("--out", "x", "--speed", "2.5").speed == 2.5
