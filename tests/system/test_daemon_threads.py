"""The daemon's threads, with the machine's clock: one that hangs or breaks does not leave it half alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from rtdecode import client as wire
from rtdecode.acquire.source import Arrival
from rtdecode.clock import SystemClock
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.service import LocalService
from rtdecode.errors import JournalError, ProtocolError
from rtdecode.packs import open_pack
from rtdecode.session.daemon import Daemon
from rtdecode.session.recording import Recording
from tests.system.line_harness import PLAN, Recorder, settings_for


class Scripted:
    """A source that does what it is told at each look."""

    problem = None

    def __init__(self, look: Callable[[int], list[Arrival]]) -> None:
        self._look = look
        self.looks = 0

    def poll(self) -> list[Arrival]:
        self.looks += 1
        return self._look(self.looks)

    def wait(self, timeout_s: float) -> None:
        time.sleep(0.005)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Running:
    """A daemon over a scripted source, in a thread of its own."""

    def __init__(self, out: Path, look: Callable[[int], list[Arrival]]) -> None:
        settings = settings_for(out, PLAN, publish={"heartbeat_s": 0.05})
        pack = open_pack("tiny")
        self.heard = Recorder()
        self.source: Any = Scripted(look)
        self.recording = Recording(settings.session, "", SystemClock())
        decoder = LocalService(load_decoder(pack, settings.decode))
        self.daemon = Daemon(settings, self.source, decoder, pack, self.recording, self.heard, SystemClock())
        self.daemon.begin()
        self.stop = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.daemon.run(self.stop)
        except Exception as error:
            self.error = error

    def await_(self, wanted: Callable[[], bool]) -> None:
        while not wanted():
            assert self._thread.is_alive() or wanted()
            time.sleep(0.01)

    def end(self) -> None:
        self.stop.set()
        self._thread.join()

    def kinds(self) -> list[tuple[str, str, bool]]:
        return [(f.part, f.kind, f.over) for f in self.heard.of(wire.Fault)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[[Callable[[int], list[Arrival]]], Running]]:
    made: list[Running] = []

    def start(look: Callable[[int], list[Arrival]]) -> Running:
        made.append(Running(tmp_path, look))
        return made[-1]

    yield start
    for one in made:
        one.end()
        one.recording.close()


Start = Callable[[Callable[[int], list[Arrival]]], Running]


def test_a_look_at_the_folder_that_hangs_leaves_the_heartbeats_and_is_told(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdecode.session.health.STUCK_S", 0.2)
    go = threading.Event()

    def hang(look: int) -> list[Arrival]:
        if look == 3:
            go.wait()
        return []

    one = running(hang)
    one.await_(lambda: ("acquire", "stuck", False) in one.kinds())
    beats = len(one.heard.of(wire.Heartbeat))
    one.await_(lambda: len(one.heard.of(wire.Heartbeat)) > beats + 3)
    go.set()
    one.await_(lambda: ("acquire", "stuck", True) in one.kinds())


def test_a_look_at_the_folder_that_fails_is_told_and_the_next_one_taken(running: Start) -> None:
    go = threading.Event()

    def fail(look: int) -> list[Arrival]:
        if not go.is_set():
            raise ValueError("a name that nobody foresaw")
        return []

    one = running(fail)
    one.await_(lambda: one.kinds() == [("acquire", "folder", False)])
    go.set()
    one.await_(lambda: one.kinds()[-1] == ("acquire", "folder", True))
    one.end()
    assert one.error is None
    assert [m.state for m in one.heard.of(wire.Session)] == ["running", "ending", "ended"]


@pytest.mark.parametrize("broken", ["the stream", "the disk"])
def test_a_part_that_is_broken_for_good_ends_the_process_in_order(running: Start, broken: str) -> None:
    def look(count: int) -> list[Arrival]:
        if broken == "the disk" and count > 3:
            raise JournalError("2 GiB of volumes could not be written")
        return []

    one = running(look)
    if broken == "the stream":
        one.heard.broken = "RuntimeError: out of sockets"  # type: ignore[assignment]
    one._thread.join()
    assert isinstance(one.error, ProtocolError if broken == "the stream" else JournalError)
    assert one.heard.of(wire.Session)[-1].state == "ended"


def test_the_way_out_is_told_and_heartbeats_go_on(
    running: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(lambda look: [])
    beats: list[int] = []
    finish = one.daemon._line.finish

    def slow() -> None:
        beats.append(len(one.heard.of(wire.Heartbeat)))
        time.sleep(0.3)
        beats.append(len(one.heard.of(wire.Heartbeat)))
        finish()

    monkeypatch.setattr(one.daemon._line, "finish", slow)
    with caplog.at_level("INFO"):
        one.end()
    assert beats[1] > beats[0] + 2
    assert "ending: 0 inputs wait to be estimated" in caplog.text
    assert [m.state for m in one.heard.of(wire.Session)][-2:] == ["ending", "ended"]
