"""What goes wrong in a session does not lose it: late announcements, full disks, damaged journals and volumes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.acquire.source import Arrival
from rtdecode.errors import Busy, JournalError, ProtocolError
from rtdecode.publish import requests
from rtdecode.publish.display.notices import Notices
from rtdecode.records import Skipped
from rtdecode.session.journal import enumerated, read
from rtdecode.session.past import Past
from rtdecode.session.recording import Recording, session_folder
from rtdecode.session.recovery import recover_session
from rtdecode.session.run_state import Progress
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Recorder, Rig, settings_for, without_times

SHORT = replace(PLAN, calibration_runs=0, decoding_runs=2, trials_per_run=8, volumes_per_run=30)


class Visit:
    """Two short runs; `hold` is called before each, and after the last with its number + 1."""

    def __init__(
        self, out: Path, hold: Callable[[Visit, int], None] = lambda visit, run: None, **sections: Any
    ) -> None:
        self.clock = FakeClock()
        self.settings = settings_for(out, SHORT, **{"calibration": {"runs": 6}, **sections})
        self.rig = Rig(self.settings, self.clock)
        participant = make_participant(SHORT.seed, PROTOCOL, ResponseParameters(n_responsive=60))
        scanner = Scanner(SHORT, participant, self.settings.scanner.export_dir, self.clock, speed=1.0)
        scanner.play(
            lambda message: self.rig.request(requests.Event, **message),
            lambda run: (self.clock.sleep(10.0), hold(self, run))[0],
        )
        self.clock.sleep(10.0)
        hold(self, SHORT.runs + 1)
        self.folder = session_folder(self.settings.session)

    @property
    def heard(self) -> Recorder:
        return self.rig.recorder

    def announce(self, **fields: Any) -> dict[str, Any]:
        return self.rig.request(requests.Event, **{"kind": "trial", "duration_s": 1.0, **fields})


def last_words(recorder: Recorder) -> dict[str | None, str | None]:
    return {m.trial: m.invalid for m in recorder.of(wire.Beta) if m.final}


def test_each_trial_that_was_accepted_has_its_last_word(tmp_path: Path) -> None:
    def late(visit: Visit, run: int) -> None:
        if run == 1:
            visit.announce(run=1, trial="beyond", onset_s=500.0)
            visit.announce(run=9, trial="never", onset_s=3.0)
        if run == 3:
            with pytest.raises(ProtocolError, match="run 1 is over"):
                visit.announce(run=1, trial="late", onset_s=2.5)

    visit = Visit(tmp_path, late)
    visit.rig.finish()
    words = last_words(visit.heard)
    assert {t.trial for t in SHORT.trials} <= words.keys()
    assert "late" not in words
    assert words["beyond"] is not None
    assert words["never"] == "the session ended before run 9 was scanned"
    doubtful = [f.reason for f in visit.heard.of(wire.Fault) if f.kind == "announcement"]
    assert [text.split(",")[0] for text in doubtful] == [
        "trial 'beyond' shows no stimulus", "trial 'never' shows no stimulus",
    ]  # fmt: skip


def test_many_volumes_that_wait_for_the_estimate_are_not_one_that_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    rig = Rig(settings_for(tmp_path, SHORT), clock)
    daemon: Any = rig._daemon
    clock.on_sleep = lambda: daemon.watch_once()
    waiting = [
        Arrival(path=None, item=Skipped(run=1, volume=None, path=f"{n}.dcm", reason="no image")) for n in range(4)
    ]
    monkeypatch.setattr(rig._source, "poll", lambda: waiting)
    monkeypatch.setattr(daemon._intake, "scanned", lambda item: clock.sleep(3.0))
    assert daemon.ingest_once() == 4
    assert not [f for f in rig.recorder.of(wire.Fault) if f.kind == "stuck"]
    monkeypatch.setattr(daemon._intake, "scanned", lambda item: clock.sleep(6.0))
    daemon.ingest_once()
    assert [f.over for f in rig.recorder.of(wire.Fault) if f.kind == "stuck"] == [False]
    monkeypatch.undo()
    rig.finish()


def test_doubtful_trials_are_one_notice_that_counts_them(tmp_path: Path) -> None:
    rig = Rig(settings_for(tmp_path, SHORT), FakeClock())
    daemon: Any = rig._daemon
    daemon._line.progress = Progress(closed=0, run=1, volumes=40, scanned_s=60.0)
    trial = {"kind": "trial", "run": 1, "duration_s": 1.0, "stimulus": "nowhere"}
    for number in range(30):
        answer = rig.request(requests.Event, **trial, trial=f"t{number}", onset_s=float(number))
        assert len(answer["warnings"]) == 2
    notices = Notices()
    for fault in rig.recorder.of(wire.Fault):
        notices.fault(fault)
    (notice,) = notices.state()["new"]
    assert (notice["title"], notice["count"]) == ("experiment", 30)
    assert "'t29' shows 'nowhere'" in notice["reason"]
    assert "was announced 31 s after its onset" in notice["reason"]
    rig.finish()


def test_a_trial_of_a_run_that_was_passed_over_is_told_when_it_is_clear(tmp_path: Path) -> None:
    rig = Rig(settings_for(tmp_path, SHORT), FakeClock())
    rig.request(requests.Event, kind="trial", run=1, trial="a", onset_s=1.0, duration_s=1.0)
    daemon: Any = rig._daemon
    daemon.estimate_once(0)
    daemon._line._enter(2, 1.5)
    daemon._line._finish_run()
    assert last_words(rig.recorder) == {"a": "run 1 was not scanned"}
    rig.finish()


def test_a_trial_that_is_closed_while_it_is_on_its_way_is_told_and_resumed(tmp_path: Path) -> None:
    """The judge says yes, and the run closes before the line comes to it."""
    rig = Rig(settings_for(tmp_path, SHORT), FakeClock())
    daemon: Any = rig._daemon
    daemon._line._done = 1
    rig.request(requests.Event, kind="trial", run=1, trial="a", onset_s=1.0, duration_s=1.0)
    daemon.estimate_once(0)
    assert last_words(rig.recorder) == {"a": "its run was over when it was announced"}
    rig._restart()
    rig.finish()
    assert not [f for f in rig.recorder.of(wire.Fault) if f.part == "estimate"]


def test_what_failed_live_does_not_block_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit(tmp_path)
    before = content(visit.folder)
    handle = type(visit.rig._daemon._line).handle  # type: ignore[attr-defined]

    def fail(line: Any, item: Any, lag: int) -> None:
        if getattr(item, "trial", "") == SHORT.trials[3].trial:
            raise RuntimeError("as it did live")
        handle(line, item, lag)

    monkeypatch.setattr("rtdecode.session.line.Line.handle", fail)
    visit.rig._restart()
    assert [f.reason for f in visit.heard.of(wire.Fault) if f.part == "estimate"] == ["RuntimeError: as it did live"]
    assert content(visit.folder)[: len(before)] == before
    visit.rig.finish()


def content(folder: Path) -> list[tuple[object, ...]]:
    messages = [wire.unpack(r["topic"].encode(), r["payload"]) for r in read(folder / "journal" / "outputs.journal")]
    return [without_times(m) for m in messages if isinstance(m, wire.Volume | wire.Beta)]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:500])])
def test_a_kept_volume_that_cannot_be_read_is_missing_when_told_so(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    visit = Visit(tmp_path)
    visit.rig._recording.close()
    spoil(visit.folder / "journal" / "volumes" / "run-02" / "vol-0007.nii")
    with pytest.raises(JournalError, match=r"run-02/vol-0007.nii.*--leave-out-unreadable"):
        list(Past(visit.folder).inputs(0.0))
    whole = [item for item in Past(visit.folder, leave_out=True).inputs(0.0)]
    missing = [item for item in whole if type(item).__name__ == "Skipped"]
    assert [(item.run, item.volume) for item in missing] == [(2, 7)]  # type: ignore[union-attr]
    assert len(whole) == sum(1 for r in read(visit.folder / "journal" / "inputs.journal") if r["kind"] != "session")
    visit.rig._source.close()


def test_one_bit_in_a_length_costs_one_record_and_the_rest_is_resumed(tmp_path: Path) -> None:
    visit = Visit(tmp_path)
    visit.rig._recording.close()
    path = visit.folder / "journal" / "inputs.journal"
    records = list(enumerated(path))
    place = next(p for p, r in records if r["kind"] == "volume" and (r["run"], r["volume"]) == (1, 12))
    damaged = bytearray(path.read_bytes())
    damaged[place + 5] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="rtdecode session recover"):
        Past(visit.folder)
    found = recover_session(visit.folder)
    assert (len(found["inputs"].damaged), len(found["outputs"].damaged)) == (1, 0)
    visit.rig._start(resume=True)
    visit.rig.finish()
    skipped = [(s.run, s.volume, s.reason) for s in visit.heard.of(wire.Skipped)]
    assert skipped == [(1, 12, "its record in the journal was damaged")]
    assert last_words(visit.heard).keys() == {t.trial for t in SHORT.trials}


def test_the_identifier_of_a_session_survives_the_loss_of_its_record(tmp_path: Path) -> None:
    visit = Visit(tmp_path)
    visit.rig._recording.close()
    visit.rig._source.close()
    path = visit.folder / "journal" / "inputs.journal"
    damaged = bytearray(path.read_bytes())
    damaged[next(p for p, r in enumerated(path) if r["kind"] == "session") + 20] ^= 1
    path.write_bytes(damaged)
    recover_session(visit.folder)
    assert Past(visit.folder)._session == visit.heard.messages[0].session


def test_a_disk_that_is_full_for_a_while_changes_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"full": False}

    def refusing(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            if state["full"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*arguments)

        return written

    (tmp_path / "whole").mkdir()
    (tmp_path / "full").mkdir()
    whole = Visit(tmp_path / "whole")
    reference = whole.rig.finish()
    monkeypatch.setattr(Path, "write_bytes", refusing(Path.write_bytes))
    monkeypatch.setattr("rtdecode.session.journal.os.pwrite", refusing(os.pwrite))

    class Filling(Scanner):
        def play(self, announce: Any, hold: Any = None, on_volume: Any = None) -> None:
            def count(run: int, volume: int) -> None:
                state["full"] = run == 2 and 5 <= volume < 20

            super().play(announce, hold, count)

    monkeypatch.setattr("tests.system.test_hardships.Scanner", Filling)
    visit = Visit(tmp_path / "full")
    faults = [(f.part, f.kind, f.over) for f in visit.heard.of(wire.Fault) if f.part == "disk"]
    assert faults == [("disk", "recording", False), ("disk", "recording", True)]
    folder = visit.rig.finish()
    assert content(folder) == content(reference)
    for path in sorted((reference / "journal" / "volumes").rglob("*.nii")):
        kept = folder / path.relative_to(reference)
        assert kept.read_bytes() == path.read_bytes()
    for path in reference.rglob("*_betas.nii.gz"):
        other = nib.load(folder / path.relative_to(reference))
        assert np.array_equal(np.asarray(nib.load(path).dataobj), np.asarray(other.dataobj))


def test_a_volume_that_the_ingest_fails_on_is_named_and_those_after_it_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Recording.keep

    def failing(recording: Recording, volume: Any) -> None:
        if (volume.stamp.run, volume.stamp.volume) in ((1, 7), (2, 29)):
            raise IndexError("nobody foresaw this")
        keep(recording, volume)

    monkeypatch.setattr(Recording, "keep", failing)
    visit = Visit(tmp_path)
    visit.rig.finish()
    skipped = [(m.run, m.volume, m.reason) for m in visit.heard.of(wire.Skipped)]
    why = "it could not be kept: IndexError: nobody foresaw this"
    assert skipped == [(1, 7, why), (2, 29, why)]
    assert len(visit.heard.of(wire.Volume)) == SHORT.runs * SHORT.volumes_per_run - 2
    assert {f.part for f in visit.heard.of(wire.Fault)} == {"acquire"}


def test_while_a_session_is_resumed_its_clients_are_told_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(tmp_path)
    visit.rig._recording.close()
    visit.rig._source.close()
    told: list[str] = []
    beats: list[int] = []
    handle = type(visit.rig._daemon._line).handle  # type: ignore[attr-defined]

    def watched(line: Any, item: Any, lag: int) -> None:
        visit.clock.now += 1.0
        beats.append(len(visit.heard.of(wire.Heartbeat)))
        daemon = next(d for d in daemons)
        assert daemon.desk.answer(requests.Ping(v=1, id=1))
        assert daemon.desk.answer(requests.Snapshot(v=1, id=1))
        try:
            daemon.desk.answer(requests.Event(v=1, id=1, kind="run_start", run=3))
        except Busy as busy:
            told.append(str(busy))
        handle(line, item, lag)

    daemons: list[Any] = []
    begin = type(visit.rig._daemon).begin

    def seen(daemon: Any, *given: Any) -> None:
        daemons.append(daemon)
        begin(daemon, *given)

    monkeypatch.setattr("rtdecode.session.daemon.Daemon.begin", seen)
    monkeypatch.setattr("rtdecode.session.line.Line.handle", watched)
    visit.rig._start(resume=True)
    monkeypatch.undo()
    count = len(Past(visit.folder))
    assert told[0] == f"the session is being resumed: 0 of {count} records"
    assert len(told) == count - 1  # all but the session's own
    assert beats[-1] - beats[0] >= len(told) - 2
    assert [m.state for m in visit.heard.of(wire.Session)][-2:] == ["resuming", "running"]
    visit.rig.finish()


def test_nothing_is_taken_while_the_session_ends(tmp_path: Path) -> None:
    rig = Rig(settings_for(tmp_path, SHORT), FakeClock())
    daemon: Any = rig._daemon
    daemon._intake.close()
    records = len(list(read(session_folder(rig._settings.session) / "journal" / "inputs.journal")))
    with pytest.raises(ProtocolError, match="the session is ending"):
        rig.request(requests.Event, kind="trial", run=1, trial="a", onset_s=1.0, duration_s=1.0)
    assert len(list(read(session_folder(rig._settings.session) / "journal" / "inputs.journal"))) == records
    rig.finish()


def test_a_trial_is_remembered_only_when_it_is_journalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(settings_for(tmp_path, SHORT), FakeClock())

    def refuse(kind: str, item: object) -> None:
        raise JournalError("the disk refused")

    daemon: Any = rig._daemon
    fields: dict[str, Any] = {"kind": "trial", "run": 1, "trial": "a", "onset_s": 1.0, "duration_s": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(daemon._intake, "announced", refuse)
        with pytest.raises(JournalError):
            rig.request(requests.Event, **fields)
    rig.request(requests.Event, **fields)
    rig.request(requests.Event, **fields)
    kinds = [r["kind"] for r in read(session_folder(rig._settings.session) / "journal" / "inputs.journal")]
    assert kinds == ["session", "trial"]
    rig.finish()
