import errno
import os
import struct
import threading
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdecode.errors import JournalError
from rtdecode.records import Stamp, Volume
from rtdecode.session.journal import Journal, enumerated, read, recover
from rtdecode.session.recording import Recording
from rtdecode.settings import SessionSettings
from tests.conftest import FakeClock

VALUES = st.dictionaries(st.text(max_size=5).filter(lambda k: k not in ("kind", "t_wall")),
                         st.integers(-9, 9) | st.binary(max_size=20) | st.none(), max_size=3)  # fmt: skip


def write(path: Path, records: list[dict[str, object]]) -> None:
    journal = Journal(path, FakeClock())
    for record in records:
        journal.append("thing", **record)
    journal.close()


@settings(max_examples=30)
@given(records=st.lists(VALUES, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, records)
    assert [{k: v for k, v in r.items() if k not in ("kind", "t_wall")} for r in read(path)] == records


@settings(max_examples=30)
@given(cut=st.integers(1, 30))
def test_a_torn_last_record_is_left_out(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, [{"n": 1}, {"n": 2}, {"payload": bytes(40)}])
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["n"] for r in read(path)] == [1, 2]


def test_an_altered_record_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "j", [{"payload": b"abc"}, {"n": 2}])
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data.replace(b"abc", b"abd"))
    with pytest.raises(JournalError, match="checksum"):
        list(read(tmp_path / "j"))


@settings(max_examples=30)
@given(records=st.lists(VALUES, min_size=1, max_size=5), wanted=st.lists(st.integers(0, 99)))
def test_any_record_is_found_again_where_append_said(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], wanted: list[int]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    half = len(records) // 2
    first = Journal(path, FakeClock())
    places = [first.append("thing", **record) for record in records[:half]]
    first.close()
    resumed = Journal(path, FakeClock(), resume=True)
    places += [resumed.append("thing", **record) for record in records[half:]]
    assert [place for place, _ in enumerated(path)] == places
    wanted = [number % len(records) for number in wanted]
    found = list(resumed.at(places[i] for i in wanted))
    assert [{k: v for k, v in r.items() if k not in ("kind", "t_wall")} for r in found] == [records[i] for i in wanted]
    resumed.close()


def test_a_record_that_was_altered_is_not_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", FakeClock())
    place = journal.append("thing", payload=b"abc")
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(JournalError, match=f"byte {place}"):
        list(journal.at([place]))
    journal.close()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("takes", [0, 7])
def test_what_the_disk_refuses_is_held_in_order_and_written_when_it_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool, takes: int
) -> None:
    path = tmp_path / ("other" if resume else "j")
    write(tmp_path / "other", [])
    journal = Journal(path, FakeClock(), resume=resume)
    journal.append("thing", n=1)
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if takes and len(data) > takes:
            return pwrite(file, data[:takes], place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rtdecode.session.journal.os.pwrite", full)
    places = [journal.append("thing", n=n) for n in (2, 3)]
    assert journal.problem is not None
    assert "No space left" in journal.problem
    assert [r["n"] for r in journal.at(places)] == [2, 3]
    assert [r["n"] for r in read(path)] == [1]
    monkeypatch.undo()
    journal.append("thing", n=4)
    assert journal.problem is None
    journal.close()
    assert [r["n"] for r in read(path)] == [1, 2, 3, 4]
    assert [place for place, r in enumerated(path) if r["n"] in (2, 3)] == places


def test_what_can_be_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = Journal(tmp_path / "j", FakeClock())
    monkeypatch.setattr("rtdecode.session.journal.os.pwrite", full)
    monkeypatch.setattr("rtdecode.session.journal.HELD_BYTES", 1000)
    for _ in range(9):
        journal.append("thing", payload=bytes(50))
    with pytest.raises(JournalError, match="No space left"):
        journal.append("thing", payload=bytes(50))


def test_records_wait_for_what_they_tell_of(tmp_path: Path) -> None:
    kept = {"ready": False}
    journal = Journal(tmp_path / "j", FakeClock(), ready=lambda: kept["ready"])
    journal.append("thing", n=1)
    assert (tmp_path / "j").stat().st_size == 0
    kept["ready"] = True
    journal.append("thing", n=2)
    assert [r["n"] for r in read(tmp_path / "j")] == [1, 2]
    journal.close()


@pytest.fixture
def nine(tmp_path: Path) -> tuple[Path, list[int]]:
    """A journal of nine records, and where each begins; the last place is the end."""
    path = tmp_path / "session" / "journal" / "inputs.journal"
    path.parent.mkdir(parents=True)
    write(path, [{"n": n} for n in range(9)])
    return path, [*(place for place, _ in enumerated(path)), path.stat().st_size]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(min_value=0))
def test_one_bit_anywhere_loses_no_more_than_its_record(nine: tuple[Path, list[int]], bit: int) -> None:
    path, places = nine
    whole = path.read_bytes()
    bit %= 8 * len(whole)
    spoilt = bytearray(whole)
    spoilt[bit // 8] ^= 1 << bit % 8
    path.write_bytes(spoilt)
    hit = next(i for i, start in enumerate([0, *places]) if start > bit // 8) - 2 if bit // 8 < places[-1] else 8
    try:
        if hit < 8:
            with pytest.raises(JournalError, match="rtdecode session recover"):
                list(read(path))
            with pytest.raises(JournalError, match="rtdecode session recover"):
                Journal(path, FakeClock(), resume=True)
            assert path.read_bytes() == bytes(spoilt)
            found = recover(path)
            assert len(found.damaged) == 1
            assert path.with_name("inputs.journal.damaged").read_bytes() == bytes(spoilt)
        assert [r["n"] for r in read(path)] == [n for n in range(9) if n != hit]
    finally:
        path.with_name("inputs.journal.damaged").unlink(missing_ok=True)
        path.write_bytes(whole)


def test_a_torn_end_is_kept_beside_the_journal(nine: tuple[Path, list[int]]) -> None:
    path, places = nine
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    journal = Journal(path, FakeClock(), resume=True)
    assert journal.append("thing", n=9) == places[8]
    journal.close()
    assert path.with_name(f"inputs.journal.torn-{places[8]}").read_bytes() == whole[places[8] : -3]
    assert [r["n"] for r in read(path)] == [*range(8), 9]


def test_a_journal_of_an_older_version_is_named(tmp_path: Path) -> None:
    payload = msgpack.packb({"kind": "journal", "t_wall": 0.0, "schema": "rtdecode.session.journal/1"})
    (tmp_path / "j").write_bytes(struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    with pytest.raises(JournalError, match="older version"):
        list(read(tmp_path / "j"))


def test_another_file_is_refused_and_none_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"")
    with pytest.raises(JournalError, match="schema"):
        list(read(tmp_path / "j"))
    with pytest.raises(JournalError, match="cannot make"):
        Journal(tmp_path / "j", FakeClock())


def test_what_records_tell_of_reaches_the_disk_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    done: list[str] = []
    journal = Journal(tmp_path / "a.journal", clock, fsync_s=1.0, before_sync=lambda: done.append("volumes"))
    monkeypatch.setattr("rtdecode.session.journal.os.fsync", lambda _: done.append("journal"))
    journal.append("volume", n=1)
    assert done == []
    clock.now += 1.0
    journal.append("volume", n=2)
    assert done == ["volumes", "journal"]
    journal.append("volume", n=3)
    clock.now += 1.0
    journal.sync_if_due()
    assert done == ["volumes", "journal"] * 2
    clock.now += 5.0
    journal.sync_if_due()  # nothing new
    assert done == ["volumes", "journal"] * 2
    monkeypatch.undo()
    journal.close()


def volume_of(index: int) -> Volume:
    return Volume(
        stamp=Stamp(session="a-01", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        data=np.zeros((2, 2, 2), np.int16),
        affine=np.eye(4),
        t_r_s=1.0,
        slice_times_s=None,
        series_uid="1",
        instance=index,
        path="",
    )


def test_volumes_and_announcements_that_come_at_once_are_all_kept(tmp_path: Path) -> None:
    """Volumes come on one thread, announcements on another, and both write what is held."""
    recording = Recording(SessionSettings(participant="a", output=tmp_path), "", FakeClock())
    writing, announced = threading.Event(), threading.Event()
    write = Path.write_bytes

    def slow(path: Path, content: bytes) -> int:
        """Let the announcement come while a volume is written."""
        done = write(path, content)
        writing.set()
        announced.wait(0.2)
        return done

    def announce() -> None:
        writing.wait()
        recording.inputs.append("trial", trial="t")
        announced.set()

    announcing = threading.Thread(target=announce)
    announcing.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", slow)
        recording.keep(volume_of(0))
    announcing.join()
    assert announced.is_set()
    recording.arrival(volume_of(0))
    recording.close()
    assert [record["kind"] for record in read(recording.folder / "journal" / "inputs.journal")] == [
        "session", "trial", "volume",
    ]  # fmt: skip


def test_kept_volumes_are_brought_to_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    session = SessionSettings(participant="a", output=tmp_path)
    recording = Recording(session, "", clock)
    synced: list[str] = []
    monkeypatch.setattr("rtdecode.session.kept.bring_to_disk", lambda path: synced.append(path.name))
    for index in range(2):
        volume = volume_of(index)
        recording.keep(volume)
        recording.arrival(volume)
    clock.now += 1.0
    recording.sync_if_due()
    assert synced == ["vol-0000.nii", "vol-0001.nii", "run-01", "volumes"]
    clock.now += 1.0
    recording.sync_if_due()
    assert len(synced) == 4
    recording.close()
