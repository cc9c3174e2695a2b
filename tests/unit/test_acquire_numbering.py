"""Which index a volume has, and which are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdecode.records import Volume
from tests.conftest import FakeClock
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
