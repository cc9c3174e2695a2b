"""What is broken is told once, and once when it is over, whatever hangs."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.session.health import STUCK_S, Watch
from tests.conftest import FakeClock


class Rig:
    """A `Watch` over parts that do what they are told."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.said: list[wire.Message] = []
        self.source: Any = SimpleNamespace(problem=None, looks=0)
        self.line: Any = SimpleNamespace(overdue_s=lambda: None)
        self.decoder: Any = SimpleNamespace(silent_s=0.0)
        self.recording: Any = SimpleNamespace(folder=folder, problem=None, incomplete=None, saving=False)
        self.late_s = 0.0
        self.watch = Watch(
            self.source,
            self.line,
            self.decoder,
            self.recording,
            wire.Heartbeat,
            self.said.append,
            clock,
            1.0,
            lambda: self.late_s,
        )

    def faults(self) -> list[tuple[str, str, bool]]:
        """Let a second pass; return the faults that it brought."""
        before = len(self.said)
        self.clock.now += 1.0
        assert self.watch.once()
        assert isinstance(self.said[-1], wire.Heartbeat)
        return [(m.part, m.kind, m.over) for m in self.said[before:] if isinstance(m, wire.Fault)]


@pytest.fixture
def rig(tmp_path: Path, clock: FakeClock) -> Rig:
    return Rig(tmp_path, clock)


def test_heartbeats_come_when_they_are_due(rig: Rig) -> None:
    assert rig.watch.once()
    assert not rig.watch.once()
    rig.clock.now += 0.9
    assert not rig.watch.once()
    rig.clock.now += 0.1
    assert rig.watch.once()
    assert [type(m) for m in rig.said] == [wire.Heartbeat] * 2


def test_a_poll_that_reads_file_after_file_is_not_stuck(rig: Rig) -> None:
    """A daemon that is started late finds hundreds of files at its first look."""
    with rig.watch.turn("ingest"):
        for _ in range(20):
            rig.source.looks += 1
            assert rig.faults() == []
        told = [fault for _ in range(6) for fault in rig.faults()]
        assert told == [("acquire", "stuck", False)]
        rig.source.looks += 1
        assert rig.faults() == [("acquire", "stuck", True)]


@pytest.mark.parametrize(
    ("part", "attribute", "value", "fault"),
    [
        ("source", "problem", "no such folder", ("acquire", "folder")),
        ("watch", "failure", "OSError", ("acquire", "folder")),
        ("line", "overdue_s", lambda: 4.2, ("acquire", "no-volume")),
        ("decoder", "silent_s", 5.0, ("decode", "silent")),
        ("recording", "problem", "No space left on device", ("disk", "recording")),
        ("recording", "incomplete", "tables are incomplete", ("disk", "tables")),
    ],
)
def test_a_trouble_is_told_once_and_once_when_it_is_over(
    rig: Rig, part: str, attribute: str, value: object, fault: tuple[str, str]
) -> None:
    well = getattr(getattr(rig, part), attribute)
    assert rig.faults() == []
    setattr(getattr(rig, part), attribute, value)
    assert rig.faults() == [(*fault, False)]
    (told,) = [m for m in rig.said if isinstance(m, wire.Fault)]
    assert told.reason
    assert told.degraded
    assert told.remedy
    assert rig.faults() == []
    setattr(getattr(rig, part), attribute, well)
    assert rig.faults() == [(*fault, True)]
    assert rig.faults() == []


def test_a_thread_that_hangs_does_not_stop_the_heartbeats_and_is_told_after_five_seconds(rig: Rig) -> None:
    with rig.watch.turn("ingest"):
        told = [rig.faults() for _ in range(7)]
    assert told == [[], [], [], [], [("acquire", "stuck", False)], [], []]
    assert rig.faults() == [("acquire", "stuck", True)]


def test_the_disk_is_told_before_it_is_full_and_its_loss_is_survived(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"bytes": 1 << 30}

    def usage(folder: Path) -> SimpleNamespace:
        if free["bytes"] < 0:
            raise OSError(errno.ENOENT, "gone")
        return SimpleNamespace(free=free["bytes"])

    monkeypatch.setattr("rtdecode.session.health.shutil.disk_usage", usage)
    assert rig.faults() == [("disk", "low", False)]
    assert rig.recording.saving
    free["bytes"] = 1 << 40
    assert rig.faults() == [("disk", "low", True)]
    assert not rig.recording.saving
    free["bytes"] = -1
    assert rig.faults() == []


def test_late_predictions_are_told_once_and_again_when_they_are_not(rig: Rig) -> None:
    rig.late_s = STUCK_S - 0.1
    assert rig.faults() == []
    rig.late_s = STUCK_S + 2
    assert rig.faults() == [("decode", "late", False)]
    (fault,) = [message for message in rig.said if isinstance(message, wire.Fault)]
    assert fault.reason == "a volume has waited for its prediction for 7 s"
    rig.late_s = STUCK_S + 9
    assert rig.faults() == []
    rig.late_s = 0.0
    assert rig.faults() == [("decode", "late", True)]
