"""Every command, as somebody uses it who is wrong: one line that says what to do, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from rtdecode import client
from rtdecode.__main__ import main
from rtdecode.errors import SettingsError
from rtdecode.settings import load_estimate, parse
from tests.exports import write_mosaics

AWAY = "tcp://127.0.0.1:9"


def write_settings(folder: Path, **sections: dict[str, object]) -> Path:
    content = {"session": {"participant": "01"}, "scanner": {"export_dir": "export"}, **sections}
    path = folder / "session.toml"
    path.write_bytes(tomli_w.dumps(content).encode())
    return path


@pytest.mark.parametrize("what", ["absent", "a folder", "binary"])
@pytest.mark.parametrize(
    "command",
    [
        ["run"], ["check"], ["calibrate"], ["display"], ["simulate"],
        ["inspect", "--settings"], ["process", "x.nii", "--out", "out", "--settings"],
    ],
)  # fmt: skip
def test_settings_that_cannot_be_read(
    command: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "there"
    if what == "a folder":
        path.mkdir()
    elif what == "binary":
        path.write_bytes(b"\xff\x00\xfe")
    more = [str(tmp_path)] if command[0] == "inspect" else []
    assert main([*command, str(path), *more]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "{0}/absent"], ["inspect", "{0}/empty"], ["inspect", "{0}/notes.txt"],
        ["process", "{0}/absent", "--out", "{0}/out"], ["process", "{0}/empty", "--out", "{0}/out"],
        ["process", "{0}/notes.txt", "--out", "{0}/out"],
        ["process", "{0}/export", "--out", "{0}/notes.txt"],
        ["process", "{0}/export", "--out", "{0}/out", "--mask", "{0}/absent.nii"],
        ["process", "{0}/export", "--out", "{0}/out", "--events", "{0}/absent.tsv"],
        ["process", "{0}/export", "--out", "{0}/out", "--bundle", "{0}/empty"],
        ["evaluate", "{0}/absent", "--images", "{0}/empty"], ["evaluate", "{0}/empty", "--images", "{0}/empty"],
        ["simulate", "--out", "{0}/notes.txt"], ["simulate"],
        ["simulate", "--out", "{0}/new", "--replay", "{0}/absent"],
        ["simulate", "--out", "{0}/new", "--replay", "{0}/empty"],
        ["engines", "verify", "{0}/absent"], ["engines", "verify", "{0}/empty"], ["engines", "list", "{0}/notes.txt"],
        ["engines", "embed", "{0}/empty"], ["engines", "bench", "{0}/empty"],
        ["engines", "export", "{0}/empty", "--out", "{0}/new"], ["engines", "build", "{0}/empty"],
    ],
)  # fmt: skip
def test_inputs_that_are_not_there(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "export").mkdir()
    write_mosaics(tmp_path / "export")
    (tmp_path / "notes.txt").write_text("notes\n")
    assert main([word.format(tmp_path) for word in command]) in (1, 2)
    said = capsys.readouterr()
    assert (said.err + said.out).strip()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "{0}/absent.toml", "--licence", "none"],
        ["distill", "unclip", "tiny", "--pictures", "{0}/absent.safetensors"],
        ["export", "tiny"],
        ["finetune", "tiny", "--session", "{0}/absent"],
    ],
)
@pytest.mark.parametrize("out", ["notes.txt", "full"])
def test_what_is_in_the_way_of_a_long_command_is_told_at_once_and_kept(
    command: list[str], out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "full").mkdir()
    for path in (tmp_path / "notes.txt", tmp_path / "full" / "mine.txt"):
        path.write_text("kept")
    assert main(["engines", *[word.format(tmp_path) for word in command], "--out", str(tmp_path / out)]) in (1, 2)
    assert f"{out}: expected a new folder, or a sealed one" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "notes.txt", tmp_path / "full" / "mine.txt")] == ["kept"] * 2


@pytest.mark.parametrize("word", ["0", "-1", "two"])
def test_a_visit_has_at_least_one_run(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--out", "nowhere", "--runs", word])
    assert ended.value.code == 2
    assert "expected a number from 1 on" in capsys.readouterr().err


def test_a_daemon_that_is_away_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = client.Client.__init__
    monkeypatch.setattr(
        client.Client, "__init__", lambda self, *args, **kwargs: plain(self, *args, **{**kwargs, "timeout_s": 0.1})
    )
    settings = write_settings(tmp_path, publish={"requests": AWAY, "stream": "tcp://127.0.0.1:10"})
    assert main(["simulate", str(settings)]) == 1
    assert "is the daemon running?" in capsys.readouterr().err


def test_simulate_and_display_take_addresses_and_folders_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"stream": "tcp://127.0.0.1:7001", "requests": "tcp://127.0.0.1:7002"}
    settings = write_settings(tmp_path, publish=addresses, decode={"stimuli": "pictures"})
    told: list[object] = []
    monkeypatch.setattr(
        "rtdecode.publish.display.web.serve",
        lambda stream, requests, **more: told.append((stream, requests, more["stimuli"])) or 0,
    )
    assert main(["display", str(settings), "--no-browser"]) == 0
    assert main(["display", str(settings), "--no-browser", "--stream", AWAY]) == 0
    assert main(["display", "--no-browser"]) == 0
    assert told == [
        (addresses["stream"], addresses["requests"], tmp_path / "pictures"),
        (AWAY, addresses["requests"], tmp_path / "pictures"),
        (client.STREAM, client.REQUESTS, None),
    ]
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    write_mosaics(recorded)
    assert main(["simulate", str(settings), "--replay", str(recorded), "--speed", "max"]) == 0
    assert len(list((tmp_path / "export").iterdir())) == len(list(recorded.iterdir()))


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    write_mosaics(tmp_path)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rtdecode", "inspect", "--json", str(tmp_path)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize("field", ["participant", "session"])
def test_a_label_is_wanted_without_its_entity(field: str, tmp_path: Path) -> None:
    entity = {"participant": "sub", "session": "ses"}[field]
    raw = {"session": {"participant": "01", field: f"{entity}-07"}, "scanner": {"export_dir": "export"}}
    with pytest.raises(SettingsError, match=rf"session.{field}: .*drop the {entity}-, write '07'"):
        parse(raw, root=tmp_path)
    raw["session"][field] = "p 7"
    with pytest.raises(SettingsError, match=r"letters and digits, got 'p 7'"):
        parse(raw, root=tmp_path)


def test_equal_addresses_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write_settings(tmp_path, publish={"stream": AWAY, "requests": AWAY})
    assert main(["check", str(settings)]) == 2
    assert "expected another address than that of stream" in capsys.readouterr().err


def test_a_section_is_all_that_process_wants_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "estimate.toml"
    path.write_text("[estimate]\nfinal_at_s = 9.5\n[decode]\nno_such = 1\n")
    assert load_estimate(path).final_at_s == 9.5
    path.write_text("[estimate]\nfinal_at_s = -1\n")
    with pytest.raises(SettingsError, match=r"estimate\.final_at_s"):
        load_estimate(path)


def test_a_session_that_ended_in_order_is_not_resumed_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtdecode.clock import SystemClock
    from rtdecode.commands import _ended
    from rtdecode.session.past import Past
    from rtdecode.session.recording import Recording
    from rtdecode.settings import load_settings

    (tmp_path / "export").mkdir()
    settings = write_settings(
        tmp_path,
        session={"participant": "01", "output": str(tmp_path)},
        publish={"stream": "tcp://127.0.0.1:0", "requests": "tcp://127.0.0.1:0"},
    )
    recording = Recording(load_settings(settings).session, settings.read_text(), SystemClock())
    recording.output(*client.pack(client.Session(session="01-01", seq=0, state="running")))
    assert not _ended(Past(tmp_path / "sub-01_ses-01"))
    recording.output(*client.pack(client.Session(session="01-01", seq=1, state="ended")))
    recording.close()
    assert main(["run", str(settings), "--resume"]) == 2
    assert "--resume --reopen" in capsys.readouterr().err
