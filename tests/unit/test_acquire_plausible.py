"""Repetition and slice times that cannot be true, against times that were chosen when the files were written."""

from __future__ import annotations

import datetime
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtdecode.acquire import timing
from rtdecode.acquire.inspect import inspect
from rtdecode.acquire.readers import Readers
from rtdecode.records import Skipped, Volume
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.watching import SHAPE, series, watch

T_R_S, TIMES_S = 2.0, [0.0, 0.5, 1.0, 1.5]


def put(
    folder: Path, instance: int, told_ms: float | None, *, apart_s: float = T_R_S, times_s: list[float] = TIMES_S,
    start: datetime.datetime = datetime.datetime(2001, 2, 3, 4, 5, 6), date: str | None = None,
) -> None:  # fmt: skip
    """Write a mosaic acquired `apart_s` after the one before, whose header tells `told_ms` and `times_s`."""
    made_for = mosaic.MosaicSeries(
        study="test", number=3, affine=series().affine, t_r_s=apart_s, slice_times_s=np.array(times_s), start=start
    )
    made = mosaic.dataset(
        made_for, instance, np.random.default_rng(instance).integers(1, 4000, SHAPE).astype(np.uint16)
    )
    made.RepetitionTime = told_ms
    made.AcquisitionDate = date or made.AcquisitionDate
    made.save_as(folder / f"v{instance:03d}.dcm", enforce_file_format=True)


def volumes(folder: Path, clock: FakeClock, **changes: object) -> list[Volume]:
    """What the watcher lets out of a folder that is written file by file."""
    files = sorted(folder.iterdir())
    export = folder / "export"
    export.mkdir()
    source = watch(export, clock, **changes)
    out: list[Volume | Skipped] = []
    for file in files:
        file.rename(export / file.name)
        clock.sleep(1.0)
        out += [arrival.item for arrival in source.poll()]
    clock.sleep(6.0)
    out += [arrival.item for arrival in source.poll()]
    assert all(isinstance(item, Volume) for item in out)
    return out  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("told", "scale", "right"),
    [
        *[(2.0, 1.0, 2.0), (2000.0, 1e-3, 2.0), (2000.0, 1.0, 2.0), (2.0, 1e-3, 2.0), (1.5e6, 1e-6, 1.5)],
        *[(0.055, 1.0, None), (0.0, 1.0, None), (-2.0, 1.0, None), (1e30, 1.0, None), (55.0, 1.0, None)],
    ],
)
def test_a_repetition_time_is_that_of_a_volume_in_the_one_unit_that_makes_it_so(
    told: float, scale: float, right: float | None
) -> None:
    found, note = timing.repetition_time(told, 30, scale, (1.0, 1e-3, 1e-6))
    assert found == (None if right is None else pytest.approx(right))
    assert bool(note) == (right is None or right != pytest.approx(told * scale))


@pytest.mark.parametrize(
    ("told", "right"),
    [
        ([0.0, 1.0, 0.5, 1.5], [0.0, 1.0, 0.5, 1.5]),
        ([0.0, 1000.0, 500.0, 1500.0], [0.0, 1.0, 0.5, 1.5]),
        ([86399.0, 86399.5, 0.0, 0.5], [0.0, 0.5, 1.0, 1.5]),
        ([0.0, 86398.6, 1.0, 86399.9], None),
        ([0.0, 5.0, 10.0, 14.5], None),
        ([0.0, 0.5, 1.0, 2.0], None),
        ([-0.5, 0.0, 0.5, 1.0], None),
        ([0.0, np.nan, 1.0, 1.5], None),
        ([0.0, np.inf, 1.0, 1.5], None),
        ([0.0, 0.0, 0.0, 0.0], None),
    ],
)
def test_slice_times_lie_within_the_repetition_time(told: list[float], right: list[float] | None) -> None:
    found, note = timing.slice_times(np.array(told), 2.0)
    if right is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, right)
    assert bool(note) == (told != right)


def test_the_time_of_a_shot_gives_way_to_the_distance_of_volumes(tmp_path: Path, clock: FakeClock) -> None:
    for instance in range(1, 5):
        put(tmp_path, instance, 55.0)
    reports = inspect([tmp_path]).reports
    assert [report.t_r_s for report in reports] == [T_R_S] * 4
    assert all("repetition time of 0.055 s in the file" in report.problems[0] for report in reports)
    found = volumes(tmp_path, clock)
    assert [(v.stamp.volume, v.t_r_s) for v in found] == [(index, T_R_S) for index in range(4)]
    np.testing.assert_allclose([v.slice_times_s for v in found], [TIMES_S] * 4)


def test_without_acquisition_times_the_settings_or_nothing_tell(tmp_path: Path, clock: FakeClock) -> None:
    for name in ("told", "untold"):
        (tmp_path / name).mkdir()
        for instance in range(1, 4):
            put(tmp_path / name, instance, 55.0, apart_s=0.0)
    assert [v.t_r_s for v in volumes(tmp_path / "told", clock, t_r_s=T_R_S)] == [T_R_S] * 3
    for volume in volumes(tmp_path / "untold", clock):
        assert volume.t_r_s is None
        assert [field for field, _ in timing.doubts(volume.problems)] == ["t_r_s"]


def test_a_plausible_time_that_is_not_that_of_the_volumes_is_mended_at_the_third(
    tmp_path: Path, clock: FakeClock
) -> None:
    """The first volumes are not held back for it: the later ones say that it was measured."""
    for instance in range(1, 6):
        put(tmp_path, instance, 1790.0)
    assert [report.t_r_s for report in inspect([tmp_path]).reports] == [T_R_S] * 5
    found = volumes(tmp_path, clock)
    assert [(v.t_r_s, v.t_r_measured) for v in found] == [(1.79, False)] * 2 + [(T_R_S, True)] * 3


def test_volumes_twice_as_far_apart_are_doubted_and_kept(tmp_path: Path) -> None:
    """Every other volume may have been exported."""
    for instance in range(1, 5):
        put(tmp_path, instance, 2000.0, apart_s=4.0)
    for report in inspect([tmp_path]).reports:
        assert report.t_r_s == 2.0
        assert [field for field, _ in timing.doubts(report.problems)] == ["t_r_s"]


def test_right_slice_times_of_later_volumes_serve_the_first(tmp_path: Path, clock: FakeClock) -> None:
    wrapped = [0.0, 86398.5, 1.0, 86399.5]
    for instance in range(1, 4):
        put(tmp_path, instance, 2000.0, times_s=wrapped if instance == 1 else TIMES_S)
    reports = inspect([tmp_path]).reports
    assert [report.slice_times_s for report in reports] == [TIMES_S] * 3
    assert "those of other volumes" in "".join(reports[0].problems)
    assert not reports[1].problems
    np.testing.assert_allclose([v.slice_times_s for v in volumes(tmp_path, clock)], [TIMES_S] * 3)


def test_slice_times_that_are_wrong_in_all_volumes_are_unknown_and_doubted(tmp_path: Path, clock: FakeClock) -> None:
    for instance in range(1, 4):
        put(tmp_path, instance, 2000.0, times_s=[0.0, 5.0, 10.0, 14.5])
    for volume in volumes(tmp_path, clock):
        assert volume.slice_times_s is None
        assert [field for field, _ in timing.doubts(volume.problems)] == ["slice_times_s"]


def test_a_run_over_midnight_whose_date_stays_goes_on(tmp_path: Path) -> None:
    before = datetime.datetime(2001, 2, 3, 23, 59, 57)
    for instance in range(1, 5):
        put(tmp_path, instance, 55.0, start=before, date="20010203")
    reports = inspect([tmp_path]).reports
    assert [report.t_r_s for report in reports] == [T_R_S] * 4
    assert [report.acquired_at for report in reports] == [
        (before + datetime.timedelta(seconds=T_R_S * index)).isoformat() for index in range(4)
    ]


@pytest.mark.parametrize("told", [0.0, -1.5, float("nan"), float("inf")])
def test_a_nifti_header_without_a_time_tells_none(tmp_path: Path, told: float) -> None:
    image = nib.Nifti1Image(np.ones((*SHAPE, 3), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    raw = bytearray(image.to_bytes())
    raw[92:96] = struct.pack("<f", told)  # pixdim[4]
    path = tmp_path / "bold.nii"
    path.write_bytes(raw)
    assert [volume.t_r_s for volume in Readers(tmp_path).read(path).volumes] == [None] * 3


@pytest.mark.parametrize(("told", "unit"), [(1500, "sec"), (1500, "unknown"), (1.5, "msec"), (1.5, "sec")])
def test_a_nifti_header_in_another_unit_is_read_as_it_was_meant(tmp_path: Path, told: float, unit: str) -> None:
    image = nib.Nifti1Image(np.ones((*SHAPE, 2), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = told
    nib.save(image, tmp_path / "bold.nii")
    (first, _) = Readers(tmp_path).read(tmp_path / "bold.nii").volumes
    assert first.t_r_s == pytest.approx(1.5)
    assert bool(first.notes) == ((told, unit) != (1.5, "sec"))


def test_settings_that_contradict_the_files_are_doubted_but_not_a_default(tmp_path: Path, clock: FakeClock) -> None:
    put(tmp_path, 1, 2000.0)
    (volume,) = volumes(tmp_path, clock, t_r_s=1.5)
    assert volume.t_r_s == 2.0
    assert timing.doubts(volume.problems) == [
        ("t_r_s", "implausible: expected 1.5 s by the settings, got 2 s, which is used")
    ]
    image = nib.Nifti1Image(np.ones((*SHAPE, 2), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    (tmp_path / "series").mkdir()
    nib.save(image, tmp_path / "series" / "bold.nii")
    for volume in volumes(tmp_path / "series", clock, t_r_s=1.5):
        assert volume.t_r_s == 1.5
        assert not timing.doubts(volume.problems)
