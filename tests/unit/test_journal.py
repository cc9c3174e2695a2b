from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdecode.errors import JournalError
from rtdecode.journal import Journal, read
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


def test_another_file_is_refused_and_none_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"")
    with pytest.raises(JournalError, match="schema"):
        list(read(tmp_path / "j"))
    with pytest.raises(JournalError, match="cannot make"):
        Journal(tmp_path / "j", FakeClock())
