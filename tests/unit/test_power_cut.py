"""What a client has seen survives: the end of the process, and with ``send = "after_sync"`` a power cut too.

The disk of these tests forgets every write that was not brought to it, and names in folders that were not.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtdecode import client as wire
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.session.entries import read_inputs, read_outputs
from rtdecode.session.recording import Recording
from rtdecode.settings import SessionSettings
from tests.conftest import FakeClock
from tests.unit.test_journal import volume_of


class ForgetfulDisk:
    """Follows what is written and brought to the disk; `cut` leaves of a folder what is on it.

    Where it refuses to bring something to the disk, it forgets it, as Linux does: the next attempt succeeds without it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pwrite, self._fsync = os.pwrite, os.fsync
        self._cached: dict[int, list[tuple[int, bytes]]] = {}
        self._kept: dict[int, bytearray] = {}
        self._names: dict[int, set[str]] = {}
        self.refuses = False
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def pwrite(self, file: int, content: bytes, offset: int) -> int:
        self._cached.setdefault(os.fstat(file).st_ino, []).append((offset, bytes(content)))
        return self._pwrite(file, content, offset)

    def fsync(self, file: int) -> None:
        found = os.fstat(file)
        cached = self._cached.pop(found.st_ino, None)
        if self.refuses:
            raise OSError(errno.EIO, "Input/output error")
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = set(os.listdir(file))
        elif cached is None and found.st_ino not in self._kept:  # written by other calls
            self._kept[found.st_ino] = bytearray(os.pread(file, found.st_size, 0))
        kept = self._kept.setdefault(found.st_ino, bytearray())
        for offset, content in cached or ():
            kept.extend(bytes(max(0, offset + len(content) - len(kept))))
            kept[offset : offset + len(content)] = content

    def cut(self, folder: Path, image: Path) -> Path:
        """Make of `image` what is left of a folder after a power cut."""
        image.mkdir()
        for path in folder.iterdir():
            if path.name in self._names.get(folder.stat().st_ino, set()):
                if path.is_dir():
                    self.cut(path, image / path.name)
                else:
                    (image / path.name).write_bytes(self._kept.get(path.stat().st_ino, b""))
        return image


class Session:
    """A recording behind real sockets, whose clock stands still: nothing is brought to the disk because it is due."""

    def __init__(self, folder: Path, send: str) -> None:
        self.clock = FakeClock()
        self.recording = Recording(SessionSettings(participant="a", output=folder), "", self.clock)
        self.server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        self.out = Publisher(self.recording.session, self.clock, self.server, self.recording)
        sync = self.recording.sync if send == "after_sync" else lambda: True
        self.server.start(self.answer, sync)
        self.client = wire.Client(self.server.stream, self.server.requests, topics=["volume", "heartbeat"])
        while self.client.receive(0.02) is None:
            self.out.publish(wire.Heartbeat())

    def answer(self, request: requests.AnyRequest) -> dict[str, object]:
        match request:
            case requests.Ping():
                return {"t_wall": time.time(), "t_mono": time.monotonic()}
            case requests.Replay():
                return self.out.replay(request.topic, request.since_seq)
            case requests.Event():
                self.recording.inputs.append("run_start", run=request.run, expected=None)
        return {}

    def scanned(self, index: int) -> None:
        volume = volume_of(index)
        self.recording.keep(volume)
        self.recording.arrival(volume)
        self.out.publish(wire.Volume(volume=index))

    def seen(self, index: int) -> None:
        """Wait until the client has seen a volume."""
        while True:
            message = self.client.receive(60)
            assert message is not None
            if message.volume == index:
                return

    def close(self) -> None:
        self.client.close()
        self.recording.close()
        self.server.close()


def told_in(folder: Path) -> list[int | None]:
    """Volumes whose messages a session folder holds."""
    outputs = read_outputs(folder / "journal" / "outputs.journal")
    return [wire.unpack(entry.topic.encode(), entry.payload).volume for _, entry in outputs]


def came_in(folder: Path) -> list[int]:
    """Volumes that a session folder holds as inputs, with their values."""
    inputs = [e for e in read_inputs(folder / "journal" / "inputs.journal") if getattr(e, "kept", None)]
    return [e.volume for e in inputs if (folder / e.kept).stat().st_size > 352]  # type: ignore[union-attr]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> ForgetfulDisk:
    return ForgetfulDisk(monkeypatch)


@pytest.fixture
def session(disk: ForgetfulDisk, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path / "sessions", request.param)
    yield made
    disk.refuses = False
    made.close()


@pytest.mark.parametrize("session", ["after_sync"], indirect=True)
def test_what_was_seen_survives_a_power_cut(session: Session, disk: ForgetfulDisk, tmp_path: Path) -> None:
    for index in range(12):
        session.scanned(index)
        if index % 3 == 2:  # three at once
            session.seen(index)
            image = disk.cut(session.recording.folder, tmp_path / f"image-{index}")
            assert told_in(image) == came_in(image) == list(range(index + 1))
    session.client.event(kind="run_start", run=1)
    image = disk.cut(session.recording.folder, tmp_path / "image-answer")
    assert "RunStartEntry" in {type(entry).__name__ for entry in read_inputs(image / "journal" / "inputs.journal")}
    session.clock.now += 1.0  # a resumed session goes on with the next number
    (tmp_path / "again").mkdir()
    image.rename(tmp_path / "again" / session.recording.folder.name)
    again = Recording(SessionSettings(participant="a", output=tmp_path / "again"), "", session.clock, resume=True)
    out = Publisher(again.session, session.clock, session.server, again)
    out.restore(
        (place, e.topic.encode(), e.payload) for place, e in read_outputs(again.folder / "journal/outputs.journal")
    )
    out.publish(wire.Volume(volume=12))
    again.close()
    assert told_in(again.folder) == list(range(13))


@pytest.mark.parametrize("session", ["after_write"], indirect=True)
def test_what_was_seen_survives_the_process_and_for_a_second_not_a_power_cut(
    session: Session, disk: ForgetfulDisk, tmp_path: Path
) -> None:
    for index in range(6):
        session.scanned(index)
        session.seen(index)
        assert told_in(session.recording.folder) == list(range(index + 1)), "as written: what a killed process leaves"
    session.clock.now += 1.0
    session.scanned(6)  # brings all to the disk, itself among it
    for index in (7, 8):
        session.scanned(index)
        session.seen(index)
    image = disk.cut(session.recording.folder, tmp_path / "image")
    assert told_in(image) == list(range(7)), "the last second is lost"
    assert told_in(session.recording.folder) == list(range(9))


@pytest.mark.parametrize("session", ["after_sync"], indirect=True)
def test_while_the_disk_refuses_only_heartbeats_leave_and_later_all_does_once(
    session: Session, disk: ForgetfulDisk, tmp_path: Path
) -> None:
    session.scanned(0)
    session.seen(0)
    disk.refuses = True
    for index in range(1, 5):
        session.scanned(index)
    while session.server.unsent < 4:
        time.sleep(0.01)
    session.client._ahead = 0.0
    with pytest.raises(TimeoutError, match="disk"):
        session.client._request("event", {"kind": "run_start", "run": 1}, 0.5)
    beats: list[wire.Message] = []
    while len(beats) < 2:
        session.out.publish(wire.Heartbeat(unsent=session.server.unsent))
        message = session.client.receive(0.05)
        beats += [] if message is None else [message]
    assert {(type(beat), getattr(beat, "unsent", 0)) for beat in beats} == {(wire.Heartbeat, 4)}
    assert session.recording.problem is not None
    disk.refuses = False
    got: list[int] = []
    while len(got) < 4:
        message = session.client.receive(60)
        assert message is not None
        got += [] if message.volume is None else [message.volume]
    assert got == [1, 2, 3, 4]
    image = disk.cut(session.recording.folder, tmp_path / "image")
    assert told_in(image) == came_in(image) == [0, 1, 2, 3, 4], "what the disk forgot was written again"
    assert session.server.unsent == 0
    assert session.recording.problem is None
