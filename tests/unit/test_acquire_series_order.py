"""Series that are first seen together become runs in the order in which they were acquired."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from rtdecode.acquire.inspect import inspect
from rtdecode.records import Volume
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.watching import SHAPE, series, told, watch

DAY = datetime.datetime(2001, 2, 3)


def scan(folder: Path, study: str, number: int, hour: float, count: int, name: str) -> None:
    for instance in range(1, count + 1):
        made_for = mosaic.MosaicSeries(
            study=study,
            number=number,
            affine=series().affine,
            t_r_s=2.0,
            slice_times_s=series().slice_times_s,
            start=DAY + datetime.timedelta(hours=hour),
        )
        data = np.random.default_rng([number, instance]).integers(1, 4000, SHAPE).astype(np.uint16)
        made = mosaic.dataset(made_for, instance, data)
        made.save_as(folder / f"{name}_{instance:03d}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("count", [3, 70])
@pytest.mark.parametrize("late_first", [True, False])
def test_a_console_that_started_again_swaps_no_runs(
    tmp_path: Path, clock: FakeClock, count: int, late_first: bool
) -> None:
    """Lower numbers, another study, names in any order; also with more files than one look takes."""
    scan(tmp_path, "before", 9, 10.0, count, "b" if late_first else "a")
    scan(tmp_path, "after", 8, 11.0, count, "a" if late_first else "b")
    source = watch(tmp_path, clock)
    arrivals = source.poll()
    while source._backlog:
        arrivals += source.poll()
    assert told(arrivals) == [(run, index, "volume") for run in (1, 2) for index in range(count)]
    items = [arrival.item for arrival in arrivals]
    assert [item.stamp.acquired_s for item in items if isinstance(item, Volume)] == sorted(
        (DAY + datetime.timedelta(hours=hour, seconds=2 * index)).timestamp()
        for hour in (10, 11)
        for index in range(count)
    )
    assert [r.acquired_at for r in inspect([tmp_path]).reports] == sorted(
        r.acquired_at or "" for r in inspect([tmp_path]).reports
    )


def test_over_midnight_the_later_day_is_the_later_run(tmp_path: Path, clock: FakeClock) -> None:
    scan(tmp_path, "one", 9, 23.9, 2, "b")
    scan(tmp_path, "one", 3, 24.1, 2, "a")
    found = [arrival.item for arrival in watch(tmp_path, clock).poll()]
    assert [item.instance for item in found if isinstance(item, Volume) and item.path.startswith("b")] == [1, 2]
    assert [item.path[0] for item in found] == ["b", "b", "a", "a"]
