"""The session folder while the disk misbehaves."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomli_w
from PIL import Image

from rtdecode.errors import JournalError, SettingsError
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.session.journal import read
from rtdecode.session.past import check_unchanged
from rtdecode.session.recording import Recording, session_folder
from rtdecode.settings import SessionSettings, parse
from tests.conftest import FakeClock

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def make(folder: Path, *, resume: bool = False, clock: FakeClock | None = None) -> Recording:
    session = SessionSettings(participant="a", output=folder)
    return Recording(session, "", clock or FakeClock(), resume=resume)


def volume(index: int) -> Volume:
    return Volume(
        stamp=Stamp(session="a-01", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        data=np.full((2, 2, 2), index, np.int16),
        affine=np.eye(4),
        t_r_s=1.0,
        slice_times_s=None,
        series_uid="1",
        instance=index,
        path="",
    )


def take(recording: Recording, index: int) -> None:
    recording.keep(volume(index))
    recording.arrival(volume(index))


def kept(folder: Path) -> list[int]:
    """Volumes that the journal tells of; each must be there with its values."""
    records = [r for r in read(folder / "journal" / "inputs.journal") if r["kind"] == "volume"]
    for record in records:
        data = np.asarray(nib.load(folder / record["kept"]).dataobj.get_unscaled())
        assert (data == record["volume"]).all()
    return [record["volume"] for record in records]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make the disk full, or not."""
    write_bytes, pwrite = Path.write_bytes, os.pwrite
    state = {"full": False}

    def refuse(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            if state["full"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*arguments)

        return written

    monkeypatch.setattr(Path, "write_bytes", refuse(write_bytes))
    monkeypatch.setattr("rtdecode.session.journal.os.pwrite", refuse(pwrite))
    return lambda value: state.update(full=value)


def test_a_full_disk_loses_nothing_that_came_meanwhile(tmp_path: Path, full: Callable[[bool], None]) -> None:
    recording = make(tmp_path)
    take(recording, 0)
    full(True)
    for index in (1, 2):
        take(recording, index)
    places = [recording.output(b"volume", b"message")]
    assert recording.picture("t1", 0, PICTURE) == ""
    assert recording.problem is not None
    assert "No space left" in recording.problem
    assert list(recording.published(places)) == [b"message"]
    assert kept(recording.folder) == [0]
    full(False)
    take(recording, 3)
    recording.sync_if_due()
    assert kept(recording.folder) == [0, 1, 2, 3]
    assert recording.problem is None
    assert recording.incomplete is not None  # a picture is missing
    with pytest.raises(JournalError, match=r"pictures are incomplete.*all volumes and journals are there"):
        recording.close()


def test_the_journal_tells_of_no_volume_that_is_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    recording = make(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    take(recording, 0)
    recording.inputs.append("run_end", run=1, volumes=1)
    assert [r["kind"] for r in read(recording.folder / "journal" / "inputs.journal")] == ["session"]
    monkeypatch.undo()
    recording.sync_if_due()
    assert [r["kind"] for r in read(recording.folder / "journal" / "inputs.journal")] == [
        "session",
        "volume",
        "run_end",
    ]
    recording.close()


def test_what_can_be_held_is_bounded(
    tmp_path: Path, full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = make(tmp_path)
    monkeypatch.setattr("rtdecode.session.kept.HELD_BYTES", 1000)
    full(True)
    recording.keep(volume(0))
    recording.keep(volume(1))
    with pytest.raises(JournalError, match="No space left"):
        recording.keep(volume(2))


def test_a_session_folder_that_was_moved_is_told_and_its_return_mends_it(tmp_path: Path) -> None:
    recording = make(tmp_path)
    away = tmp_path / "away"
    take(recording, 0)
    recording.folder.rename(away)
    take(recording, 1)
    recording.event(TrialEvent(run=1, trial="a", onset_s=0.0, duration_s=1.0))
    assert recording.problem is not None
    assert "moved or removed" in recording.problem
    away.rename(recording.folder)
    take(recording, 2)
    assert kept(recording.folder) == [0, 1, 2]
    with pytest.raises(JournalError, match="incomplete"):  # the row of an event could not be written
        recording.close()


def test_a_session_folder_that_is_gone_ends_in_words(tmp_path: Path) -> None:
    recording = make(tmp_path)
    shutil.rmtree(recording.folder)
    take(recording, 0)
    with pytest.raises(JournalError, match="moved or removed"):
        recording.close()


def test_two_processes_cannot_record_in_one_folder(tmp_path: Path) -> None:
    first = make(tmp_path)
    with pytest.raises(JournalError, match=f"being recorded by process {os.getpid()} on "):
        make(tmp_path, resume=True)
    first.close()
    make(tmp_path, resume=True).close()


def test_recordings_of_one_name_have_identifiers_of_their_own_and_a_resume_keeps_it(tmp_path: Path) -> None:
    clock = FakeClock()
    first = make(tmp_path, clock=clock)
    first.close()
    clock.now += 60.0
    resumed = make(tmp_path, resume=True, clock=clock)
    resumed.close()
    second = make(tmp_path / "elsewhere", clock=clock)
    second.close()
    assert first.session == resumed.session != second.session
    assert first.session.startswith("a-01-")


def test_a_table_keeps_one_row_a_line(tmp_path: Path) -> None:
    recording = make(tmp_path)
    recording.event(TrialEvent(run=1, trial="a\nb\tc", onset_s=0.0, duration_s=1.0))
    recording.close()
    (table,) = recording.folder.rglob("*_events.tsv")
    assert table.read_text().splitlines()[1].split("\t") == ["0.0", "1.0", "n/a", "a b c", "n/a"]


def test_a_session_is_resumed_with_the_settings_that_it_began_with(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "session": {"participant": "a", "output": "."},
        "scanner": {"export_dir": "export"},
        "calibration": {"runs": 4},
        "publish": {"heartbeat_s": 1.0},
    }
    (tmp_path / "export").mkdir()
    began = parse(raw, root=tmp_path)
    Recording(began.session, tomli_w.dumps(raw), FakeClock()).close()
    folder = session_folder(began.session)
    check_unchanged(began, folder, tmp_path)
    check_unchanged(parse({**raw, "publish": {"heartbeat_s": 2.0}}, root=tmp_path), folder, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    changed = {"scanner": {"export_dir": "elsewhere"}, "calibration": {"runs": 5}, "estimate": {"final_at_s": 9.0}}
    other = parse({**raw, **changed}, root=tmp_path)
    with pytest.raises(SettingsError) as caught:
        check_unchanged(other, folder, tmp_path)
    export, elsewhere = str(tmp_path / "export"), str(tmp_path / "elsewhere")
    assert caught.value.problems == [
        f"$.scanner.export_dir: expected {export!r} as when the session began, got {elsewhere!r}",
        "$.estimate.final_at_s: expected 8.0 as when the session began, got 9.0",
        "$.calibration.runs: expected 4 as when the session began, got 5",
    ]


def test_a_picture_is_kept_without_loss_unless_room_is_short(tmp_path: Path) -> None:
    recording = make(tmp_path)
    place = recording.picture("t1", 2, PICTURE)
    assert place == "recon/t1_rev-2.webp"
    with Image.open(recording.folder / place) as stored:
        assert stored.format == "WEBP"
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), PICTURE)
    recording.saving = True
    assert recording.picture("t2", 0, PICTURE) == ""
    assert [path.name for path in (recording.folder / "recon").iterdir()] == ["t1_rev-2.webp"]
    recording.close()
