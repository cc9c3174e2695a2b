from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdecode.acquire import folder as folder_module
from rtdecode.acquire import watcher as watcher_module
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.clock import SystemClock
from rtdecode.records import Skipped, Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.watching import SHAPE, nifti, put, series, told, watch


def test_a_volume_carries_what_its_file_says(tmp_path: Path, clock: FakeClock) -> None:
    path = put(tmp_path, 1)
    (arrival,) = watch(tmp_path, clock).poll()
    volume = arrival.item
    assert isinstance(volume, Volume)
    assert arrival.path == path
    assert (volume.path, volume.instance, volume.t_r_s, volume.problems) == (path.name, 1, 2.0, ())
    assert volume.stamp.session == "s1"
    assert volume.stamp.received_s == clock.wall()
    assert volume.stamp.received_mono_s == clock.monotonic()
    assert volume.stamp.acquired_s == datetime.datetime(2001, 2, 3, 4, 5, 6).timestamp()
    assert not volume.data.flags.writeable
    np.testing.assert_allclose(volume.affine, np.diag([3.0, 3.0, 4.0, 1.0]), atol=1e-9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(order=st.permutations(range(1, 9)), polls=st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_order_of_files_gives_index_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], polls: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    source, out = watch(folder, FakeClock()), []
    for instance, poll in zip(order, polls, strict=True):
        put(folder, instance)
        out += source.poll() if poll else []
    out += source.poll()
    assert told(out) == [(1, index, "volume") for index in range(8)]


def test_series_become_runs_in_order_of_their_numbers(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    for number in (12, 7):
        for instance in (2, 1):
            put(tmp_path, instance, number)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume"), (2, 0, "volume"), (2, 1, "volume")]
    put(tmp_path, 1, 5)
    assert told(source.poll()) == [(3, 0, "volume")]


def test_a_later_run_waits_for_a_gap_in_an_earlier_one(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    put(tmp_path, 3)
    assert told(source.poll()) == [(1, 0, "volume")]
    put(tmp_path, 1, 4)
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 1, "missing"), (1, 2, "volume"), (2, 0, "volume")]


def test_a_listing_that_lacks_earlier_files_loses_none(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder listed while files are made may show a file and not one that was there before it."""
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    assert told(source.poll()) == [(1, 0, "volume")]
    missed = [{str(put(tmp_path, 2)), str(put(tmp_path, 1, 4))}]
    put(tmp_path, 1, 5)
    listed = folder_module.files

    def racing(export: str, unlisted: Callable[[OSError], None]) -> Iterator[str]:
        hidden = missed.pop() if missed else set()
        return (name for name in listed(export, unlisted) if name not in hidden)

    monkeypatch.setattr(folder_module, "files", racing)
    out = source.poll()
    before = clock.now
    source.wait(1.0)
    assert clock.now == before
    out += source.poll()
    assert told(out) == [(1, 1, "volume"), (2, 0, "volume"), (3, 0, "volume")]
    assert [arrival.path for arrival in out] == [
        tmp_path / f"001_00000{number}_00000{instance}.dcm" for number, instance in ((3, 2), (4, 1), (5, 1))
    ]


@pytest.mark.parametrize("comes", [True, False])
def test_the_next_run_waits_for_the_end_of_one_whose_length_is_known(
    tmp_path: Path, clock: FakeClock, comes: bool
) -> None:
    source = watch(tmp_path, clock, n_volumes=3)
    put(tmp_path, 1)
    put(tmp_path, 2)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]
    put(tmp_path, 1, 4)
    clock.sleep(4.9)
    assert source.poll() == []
    if comes:
        put(tmp_path, 3)
        assert told(source.poll()) == [(1, 2, "volume"), (2, 0, "volume")]
    else:
        clock.sleep(0.2)
        assert told(source.poll()) == [(2, 0, "volume")]


def test_a_missing_volume_keeps_its_index_and_comes_too_late(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 2)
    assert source.poll() == []
    clock.sleep(5.0)
    missing, second = source.poll()
    assert missing.path is None
    assert told([missing, second]) == [(1, 0, "missing"), (1, 1, "volume")]
    put(tmp_path, 1)
    assert told(source.poll()) == [(1, None, "late")]


def test_duplicates_are_named_and_take_no_index(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    raw = put(tmp_path, 1).read_bytes()
    (tmp_path / "001_000003_000000.dcm").write_bytes(raw)
    assert sorted(told(source.poll()), key=str) == [(1, 0, "volume"), (1, None, "duplicate")]
    other = series()
    twin = mosaic.dataset(other, 1, np.ones(SHAPE, np.uint16))
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    put(tmp_path, 3)
    twin.InstanceNumber = 3
    twin.save_as(tmp_path / "twin.dcm", enforce_file_format=True)
    assert told(source.poll()) == [(1, None, "duplicate")]
    put(tmp_path, 2)
    assert told(source.poll()) == [(1, 1, "volume"), (1, 2, "volume")]


def test_one_echo_of_several_is_used(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    for instance in range(1, 7):
        data = np.random.default_rng(instance).integers(1, 4000, SHAPE).astype(np.uint16)
        made = mosaic.dataset(series(), instance, data)
        made.AcquisitionNumber, made.EchoNumbers = (instance + 1) // 2, 2 - instance % 2
        made.save_as(tmp_path / f"{instance}.dcm", enforce_file_format=True)
    arrivals = source.poll()
    assert [v for _, v, what in told(arrivals) if what == "volume"] == [0, 1, 2]
    assert [(v, what) for _, v, what in told(arrivals) if what != "volume"] == [(None, "left out")]


def test_unreadable_and_foreign_files_are_named_once(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    (tmp_path / "readme").write_text("nothing to see here " * 20)
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / ".hidden.dcm").write_text("ignored")
    (tmp_path / "half.dcm.tmp").write_text("ignored")
    arrivals = source.poll()
    assert told(arrivals) == [(0, None, "unreadable")]
    assert isinstance(arrivals[0].item, Skipped)
    assert "DICM" in arrivals[0].item.reason
    assert source.poll() == []


def test_a_volume_of_another_shape_is_skipped_in_place(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    put(tmp_path, 2, shape=(8, 6, 5))
    put(tmp_path, 3)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "wrong shape"), (1, 2, "volume")]


def test_a_series_of_another_shape_is_left_out_that_is_met_with_the_first(tmp_path: Path, clock: FakeClock) -> None:
    for instance in (1, 2):
        put(tmp_path, instance)
        put(tmp_path, instance, number=4, shape=(6, 6, 4))
    source = watch(tmp_path, clock)
    assert told(source.poll()) == [(0, None, "left out"), (1, 0, "volume"), (1, 1, "volume")]
    put(tmp_path, 3, number=4, shape=(6, 6, 4))
    put(tmp_path, 1, number=5)
    assert told(source.poll()) == [(2, 0, "volume")]


def test_a_repetition_time_other_than_the_settings_is_a_problem(tmp_path: Path, clock: FakeClock) -> None:
    put(tmp_path, 1)
    (arrival,) = watch(tmp_path, clock, t_r_s=1.5).poll()
    assert isinstance(arrival.item, Volume)
    assert arrival.item.t_r_s == 2.0
    assert "1.5" in arrival.item.problems[0]


def test_nifti_of_the_same_content_is_a_duplicate(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    nifti(tmp_path, "a_1.nii", 1)
    nifti(tmp_path, "a_2.nii", 1)
    assert told(source.poll()) == [(0, None, "duplicate")]
    nifti(tmp_path, "a_3.nii", 3)
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 0, "volume")]
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 1, "missing"), (1, 2, "volume")]


def test_a_copy_of_another_series_makes_no_run(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, first_instance=1)
    raw = nifti(tmp_path, "a_1.nii", 1).read_bytes()
    assert told(source.poll()) == [(1, 0, "volume")]
    (tmp_path / "copy_of_a_1.nii").write_bytes(raw)
    assert told(source.poll()) == [(1, None, "duplicate")]
    nifti(tmp_path, "b_1.nii", 2)
    assert told(source.poll()) == [(2, 0, "volume")]


def test_many_files_are_read_over_several_polls(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "MOST_FILES", 3)
    source = watch(tmp_path, clock)
    for instance in range(1, 9):
        put(tmp_path, instance)
    before, out = clock.now, []
    for _ in range(3):
        out += source.poll()
        source.wait(0.0)
    assert clock.now == before
    assert told(out) == [(1, index, "volume") for index in range(8)]


def test_a_folder_that_vanishes_is_a_problem_until_it_is_back(tmp_path: Path, clock: FakeClock) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    source = watch(folder, clock)
    os.rename(folder, tmp_path / "gone")
    assert source.poll() == []
    assert source.problem is not None
    os.rename(tmp_path / "gone", folder)
    put(folder, 1)
    assert told(source.poll()) == [(1, 0, "volume")]
    assert source.problem is None


def test_a_native_event_ends_the_wait(tmp_path: Path) -> None:
    with FolderWatcher(ScannerSettings(export_dir=tmp_path, watch="native"), "s1", SystemClock()) as source:
        source.poll()
        waiter = threading.Thread(target=source.wait, args=(60.0,))
        waiter.start()
        put(tmp_path, 1)
        waiter.join(60.0)
        assert not waiter.is_alive()
        assert told(source.poll()) == [(1, 0, "volume")]


def test_a_folder_without_events_is_polled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FolderWatcher(ScannerSettings(export_dir=tmp_path / "absent", watch="native"), "s1", SystemClock()) as source:
        assert source.poll() == []
        assert source.problem is not None
    assert "polling only" in caplog.text


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /mnt/scanner\\040share rw,relatime shared:9 - cifs //console/export rw,vers=3.0
31 21 0:41 / /mnt/nfs rw - nfs4 server:/export rw
32 31 0:42 / /mnt/nfs/local rw master:3 - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/mnt/scanner share/today", True),
        ("/mnt/scanner", False),
        ("/mnt/nfs", True),
        ("/mnt/nfs/a/b", True),
        ("/mnt/nfs/local/a", False),
        ("/data", False),
    ],
)
def test_a_network_mount_is_seen(tmp_path: Path, folder: str, expected: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert folder_module.is_remote(Path(folder), tmp_path / "mountinfo") is expected
    assert not folder_module.is_remote(Path(folder), tmp_path / "absent")


@pytest.mark.parametrize(
    ("chosen", "remote", "polled"),
    [("auto", False, False), ("auto", True, True), ("native", True, False), ("polling", False, True)],
)
def test_a_network_mount_is_polled_unless_the_settings_say_otherwise(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, chosen: str, remote: bool, polled: bool
) -> None:
    monkeypatch.setattr(folder_module, "is_remote", lambda folder: remote)
    started: list[Path] = []
    monkeypatch.setattr(folder_module, "observe", lambda folder, wake: started.append(folder))
    source = FolderWatcher(ScannerSettings(export_dir=tmp_path, watch=chosen), "s1", clock)  # type: ignore[arg-type]
    assert bool(started) is not polled
    before = clock.now
    source.wait(0.01)
    assert (clock.now > before) is polled
