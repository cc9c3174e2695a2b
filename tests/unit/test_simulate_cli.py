from __future__ import annotations

import argparse
import gzip
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rtdecode.errors import SettingsError
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
def test_pictures_alone_are_written_before_there_is_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = parse("--stimuli", "alone", "--runs", "2")
    assert arguments.handler(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]
    assert "alone: 8 pictures" in capsys.readouterr().out
    scanned = parse("--out", "export", "--stimuli", "scanned", "--runs", "2", "--speed", "max")
    assert scanned.handler(scanned) == 0
    alone, beside = ({p.name: p.read_bytes() for p in Path(name).iterdir()} for name in ("alone", "scanned"))
    assert alone == beside


@pytest.mark.parametrize("more", [[], ["--fault", "late"], ["--requests", "tcp://x"]])
def test_a_visit_needs_somewhere_to_go(more: list[str]) -> None:
    arguments = parse(*(["--stimuli", "x", *more] if more else []))
    with pytest.raises(SettingsError, match="expected SETTINGS or --out, or --stimuli alone"):
        arguments.handler(arguments)


@pytest.mark.usefixtures("short")
def test_trials_are_announced_to_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, stream: str, requests: str, *, key: str | None) -> None:
            assert (stream, requests, key) == ("", "tcp://127.0.0.1:9", None)

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


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("bundle", "more", "visit"),
    [("", [], 1), ('bundle = "of-before"', [], 2), ('bundle = "of-before"', ["--visit", "3"], 3)],
)
def test_settings_that_name_a_bundle_are_of_another_visit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str, more: list[str], visit: int
) -> None:
    made: list[int] = []

    class Made:
        def __init__(self, *_: object, visit: int, **__: object) -> None:
            made.append(visit)

        def play(self, *_: object, **__: object) -> None:
            """Write nothing."""

    monkeypatch.setattr("rtdecode.simulate.scanner.Scanner", Made)
    monkeypatch.setattr(cli, "Client", lambda *_, **__: nullcontext())
    (tmp_path / "pictures").mkdir()
    (tmp_path / "session.toml").write_text(
        f"""session = {{participant = "01"}}\nscanner = {{export_dir = "export"}}
        [decode]\nstimuli = "pictures"\n{bundle}\n"""
    )
    arguments = parse(str(tmp_path / "session.toml"), "--runs", "1", *more)
    assert arguments.handler(arguments) == 0
    assert made == [visit]


@pytest.mark.parametrize(("minutes", "pictures"), [(5, 4 * 34), (30, 12 * 40), (60, 22 * 40)])
def test_a_protocol_and_null_trials_are_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], minutes: int, pictures: int
) -> None:
    planned = cli._plan(parse("--stimuli", str(tmp_path), "--protocol", str(minutes), "--null-trials", "3"))
    null = [trial for trial in planned.trials if trial.kind == "null"]
    assert len(null) == 3 * planned.calibration_runs
    assert len(planned.trials) == pictures
    assert planned.decoding_runs == 2
    arguments = parse("--stimuli", str(tmp_path), "--runs", "1", "--protocol", "5", "--null-trials", "3")
    assert arguments.handler(arguments) == 0
    assert "31 pictures" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) == 31
    with pytest.raises(SettingsError, match="--null-trials: expected fewer"):
        cli._plan(parse("--stimuli", str(tmp_path), "--null-trials", "40"))


def test_a_folder_is_replayed_with_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recorded").mkdir()
    for number in range(4):
        (tmp_path / "recorded" / f"i{number}.dcm.gz").write_bytes(gzip.compress(b"file %d" % number * 100))
    arguments = parse(
        *("--out", str(tmp_path / "export"), "--replay", str(tmp_path / "recorded"), "--speed", "max"),
        *("--fault", "dropped@2", "--fault", "duplicated@0", "--fault", "slow"),
    )
    assert arguments.handler(arguments) == 0
    names = sorted(path.name for path in (tmp_path / "export").iterdir())
    assert names == ["copy_of_i0.dcm", "i0.dcm", "i1.dcm", "i3.dcm"]
    assert (tmp_path / "export" / "i3.dcm").read_bytes() == b"file 3" * 100
    assert "replaying" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_a_visit_is_replayed_with_faults(tmp_path: Path) -> None:
    arguments = parse(
        *("--out", str(tmp_path / "export"), "--runs", "1", "--speed", "max", "--fault", "dropped@3", "--seed", "2")
    )
    assert arguments.handler(arguments) == 0
    assert [path.name[-7:-4] for path in sorted((tmp_path / "export").glob("001_*.dcm"))] == [
        f"{instance:03d}" for instance in range(1, 15) if instance != 4
    ]


@pytest.mark.usefixtures("short")
def test_trials_of_a_visit_are_announced_between_its_volumes_whatever_goes_wrong_with_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announced(*more: str) -> list[tuple[dict[str, Any], int]]:
        """Return each message, and how many volumes were in the folder by then."""
        told = []
        export = tmp_path / f"export{len(more)}"

        class Daemon:
            def event(self, **message: Any) -> None:
                told.append((message, len(list(export.glob("*.dcm")))))

        monkeypatch.setattr(cli, "Client", lambda *_, **__: nullcontext(Daemon()))
        arguments = parse(
            *("--out", str(export), "--runs", "2", "--speed", "max", "--requests", "tcp://127.0.0.1:1", *more)
        )
        assert arguments.handler(arguments) == 0
        return told

    undisturbed = announced()
    assert len(undisturbed) == 2 * (4 + 2)
    assert announced("--fault", "duplicated@27", "--period", "1.1") == undisturbed
    lost = announced("--fault", "dropped@3")
    assert [message for message, _ in lost] == [message for message, _ in undisturbed]
    assert [count for _, count in lost] == [count - (count > 3) for _, count in undisturbed]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--replay", "absent"], "got none"),
        (["--replay", ".", "--runs", "2"], "expected no --runs"),
        (["--replay", ".", "--visit", "2"], "expected no --visit"),
        (["--replay", ".", "--null-trials", "2"], "expected no --null-trials"),
        (["--replay", ".", "--requests", "tcp://x", "--stimuli", "y"], "expected no --stimuli, --requests"),
        (["--fault", "restarted", "--requests", "tcp://x"], "restarted: expected --out alone or --replay"),
        (["--replay", ".", "--fault", "late@9999999"], "expected a volume below"),
        (["--replay", ".", "--files-per-volume", "0"], "multiple of 0"),
        (["--replay", ".", "--period", "0"], "positive times"),
    ],
)
def test_arguments_that_contradict_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], problem: str
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    arguments = parse("--out", str(tmp_path / "export"), *more)
    with pytest.raises(SettingsError, match=problem):
        arguments.handler(arguments)


def test_a_fault_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--out", "x", "--fault", "lost")
    assert "expected one of slow, in-place" in capsys.readouterr().err


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
