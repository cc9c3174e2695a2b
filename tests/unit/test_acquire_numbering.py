"""Which index a volume has, and which are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import KnownRun, Skipped, Volume
from rtdecode.settings import ScannerSettings
from tests.conftest import FakeClock
from tests.scans import unpack
from tests.watching import nifti, put, told, watch


def test_an_absurd_instance_number_does_not_open_a_gap(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    put(tmp_path, 900_000)
    assert sorted(told(source.poll()), key=str) == [(1, 0, "volume"), (1, None, "out of range")]


@pytest.mark.parametrize(("exported", "expected"), [(True, [None, None, 0, 1]), (False, [0, 1, 2, 3])])
def test_index_0_is_the_first_volume_after_dummies(
    tmp_path: Path, clock: FakeClock, exported: bool, expected: list[int | None]
) -> None:
    source = watch(tmp_path, clock, n_dummy=2, dummies_exported=exported)
    for instance in range(1, 5):
        put(tmp_path, instance)
    assert [volume for _, volume, _ in told(source.poll())] == expected


def test_a_slow_volume_0_keeps_its_index(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    path = nifti(tmp_path, "a_0.nii", 1)
    raw = path.read_bytes()
    path.write_bytes(raw[:100])
    nifti(tmp_path, "a_1.nii", 2)
    assert source.poll() == []
    path.write_bytes(raw)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]


def test_a_volume_0_that_was_taken_back_does_not_count(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    path = nifti(tmp_path, "a_0.nii", 1)
    path.write_bytes(path.read_bytes()[:100])
    assert source.poll() == []
    path.unlink()
    nifti(tmp_path, "a_1.nii", 2)
    nifti(tmp_path, "a_2.nii", 3)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]


def test_nifti_runs_come_from_names_or_folders(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, t_r_s=2.5)
    nifti(tmp_path, "run-02_bold_0001.nii", 1)
    nifti(tmp_path, "run-02_bold_0002.nii.gz", 2)
    nifti(tmp_path / "run-5", "vol_0000.nii", 3)
    nifti(tmp_path / "run-5", "vol_0001.nii", 4)
    nifti(tmp_path / "block", "image7_1.nii", 5)
    nifti(tmp_path / "block", "image7_2.nii", 6)
    arrivals = source.poll()
    assert told(arrivals) == [
        (1, 0, "volume"),
        (1, 1, "volume"),
        (2, 0, "volume"),
        (2, 1, "volume"),
        (5, 0, "volume"),
        (5, 1, "volume"),
    ]
    assert all(isinstance(a.item, Volume) and a.item.t_r_s == 2.5 for a in arrivals)


def test_a_volume_0_that_comes_second_keeps_its_index(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    nifti(tmp_path, "a_1.nii", 1)
    assert source.poll() == []
    clock.sleep(2.0)
    nifti(tmp_path, "a_0.nii", 0)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]


def test_a_volume_0_that_never_comes_is_missing_where_the_settings_tell(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, first_instance=0)
    nifti(tmp_path, "a_1.nii", 1)
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 0, "missing"), (1, 1, "volume")]


def test_later_series_count_from_where_the_first_did(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    nifti(tmp_path, "a_0.nii", 1)
    assert told(source.poll()) == [(1, 0, "volume")]
    for number in (1, 2):
        nifti(tmp_path, f"b_{number}.nii", 10 + number)
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(2, 0, "missing"), (2, 1, "volume"), (2, 2, "volume")]


def test_a_single_file_is_not_waited_with_for_ever(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    nifti(tmp_path, "a_1.nii", 1)
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 0, "volume")]
    nifti(tmp_path, "b_1.nii", 2)
    assert told(source.poll()) == [(2, 0, "volume")]


def test_a_dicom_series_counts_from_1_unless_a_0_is_there(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1, 3)
    assert told(source.poll()) == [(1, 0, "volume")]
    put(tmp_path, 0, 3)
    (late,) = source.poll()
    assert isinstance(late.item, Skipped)
    assert late.item.reason == "out of range: number 0, the series counts from 1"
    for instance in (0, 1):
        put(tmp_path, instance, 4)
    assert told(source.poll()) == [(2, 0, "volume"), (2, 1, "volume")]


def test_a_run_that_is_joined_late_has_its_own_indices(tmp_path: Path, clock: FakeClock) -> None:
    for instance in range(1, 8):
        put(tmp_path, instance)
    source = watch(tmp_path, clock)
    assert told(source.poll()) == [(1, index, "volume") for index in range(7)]
    put(tmp_path, 8)
    assert told(source.poll()) == [(1, 7, "volume")]


def test_what_was_purged_before_joining_is_missing(tmp_path: Path, clock: FakeClock) -> None:
    for instance in (5, 6):
        put(tmp_path, instance)
    source = watch(tmp_path, clock)
    assert source.poll() == []
    clock.sleep(5.0)
    expected = [(1, index, "missing") for index in range(4)] + [(1, 4, "volume"), (1, 5, "volume")]
    assert told(source.poll()) == expected


@pytest.mark.parametrize("folders", [("", ""), ("run1", "run2"), ("a/b", "c")])
def test_runs_share_a_folder_or_have_their_own(tmp_path: Path, clock: FakeClock, folders: tuple[str, str]) -> None:
    source, out = watch(tmp_path, clock), []
    for number, folder in zip((3, 4), folders, strict=True):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for instance in (1, 2):
            put(tmp_path / folder, instance, number)
            out += source.poll()
    assert told(out) == [(1, 0, "volume"), (1, 1, "volume"), (2, 0, "volume"), (2, 1, "volume")]


@pytest.mark.parametrize(("n_dummy", "exported"), [(0, True), (1, True), (1, False)])
def test_a_last_volume_that_is_announced_is_missed_at_once(
    tmp_path: Path, clock: FakeClock, n_dummy: int, exported: bool
) -> None:
    source = watch(tmp_path, clock, n_volumes=4, n_dummy=n_dummy, dummies_exported=exported)
    last = 2 if n_dummy and exported else 3
    for instance in (1, 2, 3):
        put(tmp_path, instance)
        source.poll()
        clock.sleep(2.0)
    clock.sleep(4.9)
    assert source.poll() == []
    clock.sleep(0.1)
    (missing,) = source.poll()
    assert told([missing]) == [(1, last, "missing")]
    put(tmp_path, 4)
    assert told(source.poll()) == [(1, None, "late")]
    clock.sleep(60.0)
    assert source.poll() == []


def test_a_run_that_is_broken_off_earlier_is_not_filled_up(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, n_volumes=4)
    for instance in (1, 2):
        put(tmp_path, instance)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]
    clock.sleep(600.0)
    assert source.poll() == []
    put(tmp_path, 3)
    assert told(source.poll()) == [(1, 2, "volume")]


def settled(source: FolderWatcher, clock: FakeClock) -> list[tuple[int, int | None, str]]:
    """What is told of files that end in a blank edge, too."""
    out = source.poll() + source.poll()
    clock.sleep(5.0)
    return told(out + source.poll())


@pytest.mark.parametrize("name", ["siemens-xa60-terra-sms1", "siemens-vb17-trio", "siemens-ve11-skyra-nih"])
def test_real_files_announce_the_last_volume(shared: Path, name: str, tmp_path: Path, clock: FakeClock) -> None:
    files = [path for path, _ in unpack(shared, name, tmp_path)]
    source = watch(tmp_path, clock)
    whole = settled(source, clock)
    assert whole == [(1, index, "volume") for index in range(len(files))]
    clock.sleep(60.0)
    assert source.poll() == []
    files[-1].unlink()
    source = watch(tmp_path, clock)
    assert settled(source, clock) == whole[:-1]
    clock.sleep(60.0)
    assert told(source.poll()) == [(1, len(files) - 1, "missing")]


def test_a_last_volume_is_waited_for_again_after_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    for instance in (1, 2):
        put(tmp_path, instance)
    (first, _) = watch(tmp_path, clock).poll()
    assert isinstance(first.item, Volume)
    known = KnownRun(number=1, series_uid=first.item.series_uid, offset=1, next_index=2)
    scanner = ScannerSettings(export_dir=tmp_path, watch="polling", n_volumes=3)
    source = FolderWatcher(scanner, "s1", clock, known=[known])
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 2, "missing")]
