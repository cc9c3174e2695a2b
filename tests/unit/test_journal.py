from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdecode.errors import JournalError
from rtdecode.journal import Journal, enumerated, read
from rtdecode.recording import Recording
from rtdecode.records import Stamp, Volume
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
def test_a_record_that_the_disk_takes_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    write(tmp_path / "other", [])
    journal = Journal(tmp_path / ("other" if resume else "j"), FakeClock(), resume=resume)
    journal.append("thing", n=1)
    stream = journal._stream

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(stream, name)

        def write(self, data: bytes) -> int:
            return stream.write(data[:7])

    monkeypatch.setattr(journal, "_stream", Full())
    with pytest.raises(JournalError, match="No space left"):
        journal.append("thing", n=2)
    monkeypatch.undo()
    journal.append("thing", n=3)
    journal.close()
    assert [r["n"] for r in read(journal._path)] == [1, 3]


def test_another_file_is_refused_and_none_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"")
    with pytest.raises(JournalError, match="schema"):
        list(read(tmp_path / "j"))
    with pytest.raises(JournalError, match="cannot make"):
        Journal(tmp_path / "j", FakeClock())


def test_what_records_tell_of_reaches_the_disk_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    done: list[str] = []
    monkeypatch.setattr("rtdecode.journal.os.fsync", lambda _: done.append("journal"))
    journal = Journal(tmp_path / "a.journal", clock, fsync_s=1.0, before_sync=lambda: done.append("volumes"))
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


def test_kept_volumes_are_brought_to_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    session = SessionSettings(participant="a", output=tmp_path)
    recording = Recording(session, "", clock)
    synced: list[str] = []
    monkeypatch.setattr("rtdecode.recording._sync", lambda path: synced.append(path.name))
    for index in range(2):
        volume = Volume(
            stamp=Stamp(session="a-01", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
            data=np.zeros((2, 2, 2), np.int16),
            affine=np.eye(4),
            t_r_s=1.0,
            slice_times_s=None,
            series_uid="1",
            instance=index,
            path="",
        )
        recording.keep(volume)
        recording.arrival(volume)
    clock.now += 1.0
    recording.sync_if_due()
    assert synced == ["vol-0000.nii", "vol-0001.nii", "run-01"]
    clock.now += 1.0
    recording.sync_if_due()
    assert len(synced) == 3
    recording.close()
