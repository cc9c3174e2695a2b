from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from rtdecode.simulate.faults import FAULTS, ScannerFault, Step, make_plan
from rtdecode.simulate.misbehave import FaultyScanner, RecordedExport
from rtdecode.simulate.relabel import relabel
from tests import exports
from tests.conftest import FakeClock


def nothing(step: Step) -> None:
    """Take no notice."""


@pytest.fixture
def recorded(tmp_path: Path) -> RecordedExport:
    folder = tmp_path / "recorded"
    (folder / "sub").mkdir(parents=True)
    for number in (10, 9, 1):
        (folder / "sub" / f"i{number}").write_bytes(f"file {number}".encode() * 100)
    (folder / ".hidden").write_bytes(b"hidden")
    return RecordedExport(folder)


def play(recorded: RecordedExport, out: Path, *faults: ScannerFault, on_step: Callable[[Step], None] = nothing) -> None:
    out.mkdir()
    FaultyScanner(recorded, make_plan(recorded.volumes(), faults, seed=4), out, FakeClock()).play(on_step)


@pytest.mark.parametrize("kind", sorted(set(FAULTS) - {"truncated", "unfilled", "dropped", "restarted"}))
def test_all_bytes_arrive_and_nothing_else_stays(recorded: RecordedExport, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "export"
    play(recorded, out, ScannerFault(kind=kind, volume=1))
    for number in (1, 9, 10):
        assert (out / "sub" / f"i{number}").read_bytes() == f"file {number}".encode() * 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "recorded"]
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    added = names - {"sub/i1", "sub/i9", "sub/i10"}
    foreign = {f"series-01/sub/i{number}" for number in (1, 9, 10)}
    assert added == {"duplicated": {"sub/copy_of_i9"}, "foreign": foreign}.get(kind, set())


@pytest.mark.parametrize(("kind", "full"), [("truncated", False), ("unfilled", True)])
def test_a_broken_file_stays_so(recorded: RecordedExport, tmp_path: Path, kind: str, full: bool) -> None:
    play(recorded, tmp_path / "export", ScannerFault(kind=kind, volume=1))
    good, bad = b"file 9" * 100, (tmp_path / "export" / "sub" / "i9").read_bytes()
    assert (len(bad) == len(good)) is full
    assert bad != good
    assert good.startswith(bad.rstrip(b"\0"))


def test_volumes_are_in_natural_order(recorded: RecordedExport) -> None:
    assert recorded.volumes() == [["sub/i1"], ["sub/i9"], ["sub/i10"]]
    assert recorded.volumes(3) == [["sub/i1", "sub/i9", "sub/i10"]]
    for count in (0, 2):
        with pytest.raises(ValueError, match="multiple"):
            recorded.volumes(count)


def test_files_are_unpacked_but_for_nifti(tmp_path: Path) -> None:
    for name in ("a.dcm.gz", "b.nii.gz", "c"):
        (tmp_path / name).write_bytes(gzip.compress(b"content"))
    recorded = RecordedExport(tmp_path)
    assert recorded.volumes(3) == [["a.dcm", "b.nii.gz", "c"]]
    assert recorded.read("a.dcm") == b"content"
    assert gzip.decompress(recorded.read("b.nii.gz")) == gzip.decompress(recorded.read("c")) == b"content"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got none"):
        RecordedExport(tmp_path / "empty")


def test_steps_come_at_their_times_by_the_speed(recorded: RecordedExport, tmp_path: Path) -> None:
    clock, at = FakeClock(), []
    plan = make_plan(recorded.volumes(), [])
    FaultyScanner(recorded, plan, tmp_path, clock, 4.0).play(lambda step: at.append(clock.now - 1000.0))
    assert at == [0.5, 1.0, 1.5]
    FaultyScanner(recorded, plan, tmp_path, clock, "max").play(nothing)
    assert clock.now == 1001.5


def test_a_jump_of_the_clock_shows_in_the_times_of_change(recorded: RecordedExport, tmp_path: Path) -> None:
    out = tmp_path / "export"
    play(recorded, out, ScannerFault(kind="clock-jump", volume=1))
    changed = [(out / "sub" / name).stat().st_mtime for name in ("i1", "i9", "i10")]
    assert changed[0] - changed[1] > 3000
    assert changed[0] - changed[2] > 3000


def test_a_silent_file_is_heard_of_only_when_it_is_made(recorded: RecordedExport, tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    done = threading.Event()

    class Ear(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            heard.append((event.event_type, Path(str(event.src_path)).name))
            if heard[-1][1] == "end":
                done.set()

    out = tmp_path / "export"
    (out / "sub").mkdir(parents=True)
    observer = Observer()
    observer.schedule(Ear(), str(out), recursive=True)
    observer.start()
    plan = make_plan(recorded.volumes(), [ScannerFault(kind="silent", volume=1)])
    scanner = FaultyScanner(recorded, plan, out, FakeClock())
    scanner.play(lambda step: (out / "made").touch() if step.action == "allocate" else None)
    (out / "end").touch()
    done.wait()
    observer.stop()
    observer.join()
    assert (out / "sub" / "i9").read_bytes() == b"file 9" * 100
    assert ("created", "i9") in heard
    assert "i9" not in {name for _, name in heard[heard.index(("created", "made")) :]}


def test_relabelled_dicom_is_the_same_picture_of_another_series(tmp_path: Path) -> None:
    exports.write_mosaics(tmp_path)
    old, new, again = [], [], []
    for path in sorted(tmp_path.glob("*.dcm")):
        raw = path.read_bytes()
        relabelled = relabel(raw, 5)
        assert len(relabelled) == len(raw)
        (tmp_path / "relabelled").write_bytes(relabelled)
        old.append(pydicom.dcmread(path))
        new.append(pydicom.dcmread(tmp_path / "relabelled"))
        again.append(relabel(raw, 6))
        assert again[-1] != relabelled == relabel(raw, 5)
    for before, after in zip(old, new, strict=True):
        assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != before.SOPInstanceUID
        assert after.SOPInstanceUID.is_valid
        assert (after.SeriesNumber, after.InstanceNumber) == (before.SeriesNumber + 5, before.InstanceNumber)
        np.testing.assert_array_equal(after.pixel_array, before.pixel_array)
    assert len({after.SOPInstanceUID for after in new}) == len(old)
    assert {after.SeriesInstanceUID for after in new}.isdisjoint({before.SeriesInstanceUID for before in old})
    assert len({after.SeriesInstanceUID for after in new}) == 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_relabelled_nifti_differs_in_the_first_voxel(tmp_path: Path, name: str, kind: type, order: str) -> None:
    image = kind(exports.values(0).astype(np.float32), np.eye(4))
    image = kind(exports.values(0).astype(np.float32), np.eye(4), image.header.as_byteswapped(order))
    nib.save(image, tmp_path / name)
    raw = relabel((tmp_path / name).read_bytes(), 1)
    (tmp_path / f"relabelled_{name}").write_bytes(raw)
    data = np.asarray(nib.load(tmp_path / f"relabelled_{name}").dataobj)
    assert data.flat[0] != exports.values(0).flat[0]
    np.testing.assert_allclose(data, exports.values(0), rtol=1e-6)


def test_other_files_stay_as_they_are() -> None:
    headless = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x12\x001.2.840.10008.1.2\x00"
    for content in (b"some text", b"", headless):
        assert relabel(content, 1) == content
