"""What README and documentation tell is tried: commands, settings, scripts, and that no field goes untold."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
import threading
import time
import tomllib
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import MagicMock, PropertyMock

import msgspec
import numpy as np
import pytest
from hypothesis import given

from rtdecode import client as wire
from rtdecode.__main__ import command_line
from rtdecode.errors import Busy
from rtdecode.packs import open_pack
from rtdecode.protocols.cli import EXAMPLES
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.settings import Settings, parse
from tests.conftest import FakeClock
from tests.keyed import KeyedSession
from tests.unit.test_wire import ListLog, messages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w+|\{\.\w+\})\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
_SEPARATORS = {"&&", "||", "|", ";", ">"}


def blocks(page: Path, language: str) -> list[str]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [re.sub(f"^{block[1]}", "", block[3], flags=re.MULTILINE) for block in found if block[2] == language]


def words(script: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script."""
    for line in re.sub(r"(^|\s)#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE).splitlines():
        command: list[str] = []
        for word in [*shlex.split(line), ";"]:
            if word not in _SEPARATORS:
                command.append(word)
            elif command:
                yield command
                command = []


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def parser() -> argparse.ArgumentParser:
    return command_line()


@cache
def generated() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("sh"), ids=name_of)
def test_commands_of_a_page_are_commands(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for script in blocks(page, "sh"):
        for command in words(script):
            program = next((place for place, word in enumerate(command) if word.split("/")[-1] == "rtdecode"), None)
            if program is not None:
                try:
                    parser().parse_args(command[program + 1 :])
                except SystemExit:
                    pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err}")
            for word in command:
                if re.match(r"(bench|tests|docs|\./docs|rtdecode)/.*\.?\w+$", word) and command[0] != "ssh":
                    assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_the_text_exist_with_their_options(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`(rtdecode\s[^`]+)`", text):
        inner, options = parser(), code.split()[1:]
        while options and (choices := _commands(inner)) is not None and options[0] in choices:
            inner = choices[options.pop(0)]
        assert inner is not parser() or options == ["..."], code
        known = {name for action in inner._actions for name in action.option_strings}
        assert {word for word in options if word.startswith("--")} <= known, code


def _commands(inner: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser] | None:
    found = [action for action in inner._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0].choices if found else None


@pytest.mark.parametrize("page", pages_with("toml"), ids=name_of)
def test_settings_of_a_page_are_settings(page: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "region-feedback.toml", tmp_path / "protocol.toml")
    for text in blocks(page, "toml"):
        for name in _SNIPPET.findall(text):
            text = (ROOT / name).read_text(encoding="utf-8")
        raw = tomllib.loads(text)
        assert raw
        if raw.keys() & typing.get_type_hints(Settings).keys():
            given = {"session": {"participant": "01"}, "scanner": {"export_dir": "export"}}
            parse({**raw, **{name: {**given[name], **raw.get(name, {})} for name in given}}, root=tmp_path)
        else:
            assert raw.keys() <= {"project", "build-system", "tool"}


# scripts --------------------------------------------------------------------------------------------------------


class _Subscribed(Server):
    subscribed = False

    def _subscriptions(self) -> None:
        self.subscribed = True
        super()._subscriptions()


class SmallDaemon:
    """Answers as the daemon does; whatever is shown is a cat, and is seen as one."""

    def __init__(self) -> None:
        self.server = _Subscribed("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        self.log = ListLog()
        self.out = Publisher("07-01-a", FakeClock(), self.server, self.log)
        self.events: list[requests.Event] = []
        self.server.start(self.answer)

    def answer(self, request: requests.AnyRequest) -> dict[str, object]:
        match request:
            case requests.Ping():
                return {"t_wall": time.time(), "t_mono": time.monotonic()}
            case requests.Replay():
                return self.out.replay(request.topic, request.since_seq)
            case requests.Event():
                if not self.server.subscribed:
                    raise Busy("nobody listens yet")
                self.events.append(request)
                if request.kind == "trial":
                    told = {"trial": request.trial, "revision": 0, "final": True}
                    self.out.publish(wire.Score(**told, predicted="cat", evidence=0.75, chance=0.125))
                    self.out.publish(wire.Reconstruction(**told, image=b"RIFF picture", format="webp"))
                if request.kind == "film":
                    for volume in range(12):
                        told = {"run": request.run, "volume": volume, "film": request.stimulus}
                        self.out.publish(wire.StimulusMatch(**told, final=True, window=20, z=0.1, rank=0.5))
                return {"warnings": []}
        raise AssertionError(f"not expected of a page: {request}")


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallDaemon]:
    monkeypatch.setitem(sys.modules, "client", wire)
    monkeypatch.chdir(tmp_path)
    made = SmallDaemon()
    yield made
    made.server.close()


def run(script: str, daemon: SmallDaemon) -> None:
    """Run a script of a page as it is, but for the addresses and for how long it waits for silence."""
    for there, here in ((wire.STREAM, daemon.server.stream), (wire.REQUESTS, daemon.server.requests)):
        assert there in script
        script = script.replace(there, here)
    exec(compile(script.replace("timeout_s=30", "timeout_s=0.5"), "page", "exec"), {"__name__": "page"})


def test_the_readmes_script_prints_a_score_and_keeps_a_picture(
    daemon: SmallDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (script,) = blocks(ROOT / "README.md", "python")
    run(script, daemon)
    assert capsys.readouterr().out == "cat 0.75 chance 0.125\n"
    assert (tmp_path / "now.webp").read_bytes() == b"RIFF picture"
    assert [(event.kind, event.run) for event in daemon.events] == [("run_start", 7), ("trial", 7)]


def test_the_closed_loop_shows_each_pictures_evidence(
    daemon: SmallDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    psychopy = MagicMock()
    psychopy.core.Clock().getTime.side_effect = [1.5, 9.0]
    monkeypatch.setitem(sys.modules, "psychopy", psychopy)
    (tmp_path / "pictures").mkdir()
    for name in ("cat07.png", "house12.png"):
        (tmp_path / "pictures" / name).touch()
    (script,) = blocks(ROOT / "docs" / "how-to" / "closed-loop.md", "python")
    run(script, daemon)
    trials = [(e.trial, e.stimulus, e.onset_s, e.duration_s) for e in daemon.events if e.kind == "trial"]
    assert trials == [("r07t00", "cat07", 1.5, 2.0), ("r07t01", "house12", 9.0, 2.0)]
    assert [event.kind for event in daemon.events] == ["run_start", "trial", "trial", "run_end"]
    texts = [call.kwargs["text"] for call in psychopy.visual.TextStim.call_args_list]
    assert texts == ["cat: 75%, guessing 12%"] * 2


def test_a_film_that_is_not_followed_is_paused_and_announced_again(
    daemon: SmallDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    psychopy = MagicMock()
    psychopy.core.Clock().getTime.side_effect = [6.0, 40.0, 52.5]  # it begins, is paused, goes on
    told = [False] * 2000

    def finished() -> bool:
        time.sleep(0.001)
        return not told or (told.pop() or sum(event.kind == "film" for event in daemon.events) == 2)

    type(psychopy.visual.MovieStim()).isFinished = PropertyMock(side_effect=finished)
    monkeypatch.setitem(sys.modules, "psychopy", psychopy)
    (script,) = blocks(ROOT / "docs" / "how-to" / "film.md", "python")
    run(script, daemon)
    films = [(event.stimulus, event.onset_s) for event in daemon.events if event.kind == "film"]
    assert films == [("film", 6.0), ("film", 18.5)]
    assert [event.kind for event in daemon.events] == ["run_start", "film", "film", "run_end"]


def test_a_client_on_another_machine_comes_in_with_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = KeyedSession(tmp_path)
    monkeypatch.chdir(tmp_path)
    (script,) = blocks(ROOT / "docs" / "how-to" / "beyond-one-machine.md", "python")
    for port, here in zip(("5591", "5592"), session.addresses, strict=True):
        script = script.replace(f"tcp://192.0.2.7:{port}", here)
    exec(compile(script.replace("stimulus-pc.key", "experiment.key"), "page", "exec"), {})
    session.server.close()
    offset_s, round_trip_s = map(float, capsys.readouterr().out.strip("()\n").split(","))
    assert abs(offset_s + time.time()) < 3600  # that daemon's clock stands at zero
    assert round_trip_s > 0


@cache
def bare() -> types.ModuleType:
    """The client that the page of the wire shows, as the page shows it."""
    (name,) = _SNIPPET.findall((ROOT / "docs" / "reference" / "wire.md").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("bare", ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(message=messages())
def test_the_bare_client_decodes_every_topic(message: wire.Message) -> None:
    topic, payload = wire.pack(message)
    found = bare().decoded(topic, payload)
    assert found.pop("v") == wire.VERSION
    assert found.pop("topic") == wire.topic_of(message)
    for name, value in vars(message).items():
        told = found.pop(name)
        if isinstance(value, wire.Array):
            numbers = np.frombuffer(value.data, value.dtype)
            assert (tuple(told[0]), told[1]) == (value.shape, tuple(numbers.tolist()))
        else:
            assert told == (list(value) if isinstance(value, tuple) else value), name
    assert found == {}


def test_the_bare_client_needs_pyzmq_and_msgpack_alone() -> None:
    tree = ast.parse(Path(bare().__file__ or "").read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert found - set(sys.stdlib_module_names) == {"zmq", "msgpack"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_the_bare_client_refuses_another_version_with_both_named() -> None:
    topic, payload = wire.pack(wire.Caption(session="s"))
    with pytest.raises(ValueError, match="expected version 1 of the wire, got 2"):
        bare().decoded(topic, payload.replace(b"\xa1v\x01", b"\xa1v\x02"))


def test_the_bare_client_asks_and_fills_gaps(daemon: SmallDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    payloads = [wire.pack(wire.Caption(session="07-01-a", seq=seq, text=str(seq))) for seq in range(4)]
    daemon.out.restore([(place, *frames) for place, frames in enumerate(payloads)])
    for _, payload in payloads:
        daemon.log.output(b"caption", payload)

    def send() -> None:  # once it has asked for the run; messages 1 and 2 are lost on the way
        while not daemon.events:
            time.sleep(0.01)
        for seq in (0, 3):
            daemon.server.send(*payloads[seq])

    sending = threading.Thread(target=send)
    sending.start()
    bare().main(daemon.server.stream, daemon.server.requests, 4)
    sending.join()
    texts = re.findall(r"'text': '(\d)'", capsys.readouterr().out)
    assert texts == ["0", "1", "2", "3"]
    assert [(event.kind, event.run) for event in daemon.events] == [("run_start", 1)]


def test_the_reference_opens_a_pack(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = blocks(ROOT / "docs" / "reference" / "python.md", "python")
    exec(compile(script, "page", "exec"), {})
    assert capsys.readouterr().out == f"tiny {open_pack('tiny').identity[:8]} tiny\n"


def test_every_script_of_a_page_is_tried() -> None:
    tried = {
        "README.md",
        "docs/how-to/beyond-one-machine.md",
        "docs/how-to/closed-loop.md",
        "docs/how-to/film.md",
        "docs/reference/python.md",
    }
    assert {name_of(page) for page in pages_with("python")} == tried


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_shows_are_there(page: Path) -> None:
    for name in _SNIPPET.findall(page.read_text(encoding="utf-8")):
        path = ROOT / name
        assert path.is_file(), name
        if path.suffix == ".py":
            compile(path.read_text(encoding="utf-8"), name, "exec")


def test_every_example_is_shown_by_a_page() -> None:
    shown = {name for page in PAGES for name in _SNIPPET.findall(page.read_text(encoding="utf-8"))}
    for example in (ROOT / "docs" / "examples").iterdir():
        assert any(name.startswith(f"docs/examples/{example.name}/") for name in shown), example.name


# what is told ---------------------------------------------------------------------------------------------------


def structures() -> Iterator[tuple[type, list[str]]]:
    """Everything whose fields the reference tells, with their names."""
    for kind in (wire.Message, *wire.TOPICS.values(), *typing.get_type_hints(Settings).values()):
        yield kind, [field.name for field in dataclasses.fields(kind)]
    for kind in typing.get_args(requests.AnyRequest):
        yield kind, [field.name for field in msgspec.structs.fields(kind)]
    for page in PAGES:
        for place in re.findall(r"<!-- generated: (?:structure|described|arrays) (\S+) -->", page.read_text("utf-8")):
            module, _, name = place.partition(":")
            kind = getattr(importlib.import_module(module), name)
            found = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else msgspec.structs.fields(kind)
            yield kind, [field.name for field in found]


def test_every_field_is_told_with_its_meaning() -> None:
    for kind, names in structures():
        told = generated().meanings(kind)
        assert set(told) == set(names), kind
        assert [name for name, (sort, meaning) in told.items() if not (sort and meaning)] == [], kind


def test_a_table_tells_units_types_and_defaults_of_what_the_code_has() -> None:
    page = generated().on_page_markdown("before\n<!-- generated: messages -->\n<!-- generated: settings -->\nafter")
    assert "| `fd_mm` | number | Framewise displacement, mm. |" in page
    assert '| `state` | `"started"`, `"ended"` |' in page
    assert "| `final_at_s` | float | `8` | The same for its last beta. |" in page
    assert "generated:" not in page
    assert (page.splitlines()[0], page.splitlines()[-1]) == ("before", "after")


def test_a_reader_finds_from_the_readme_where_to_add_a_scanner_format() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    target = next(link for link in re.findall(r"\]\((docs/[^)#]+)", readme) if "scanner-format" in link)
    page = (ROOT / target).read_text(encoding="utf-8")
    assert "rtdecode/acquire/readers.py" in page
    for link in re.findall(r"\]\(([^)#:]+)\)", readme + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


def test_every_decision_has_its_date_status_and_alternatives() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    table = generated().decisions().splitlines()[2:]
    assert len(table) == len(records) > 0
    for record, line in zip(records, table, strict=True):
        number, title, date, status = (cell.strip() for cell in line.strip("|").split("|"))
        assert int(number) == int(record.name[:4])
        assert record.name in title
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", date)
        assert status.split(" ")[0] in ("proposed", "accepted", "replaced")
        assert re.search(r"^## (Alternatives|What was weighed)$", record.read_text(encoding="utf-8"), re.MULTILINE), (
            record
        )
