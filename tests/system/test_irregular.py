"""Runs that do not begin or end as they should, and series in between, through the whole line."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.publish import requests
from rtdecode.settings import parse
from rtdecode.simulate import mosaic_writer as mosaic
from rtdecode.simulate.acquisition import Acquisition
from rtdecode.simulate.participant import ResponseParameters, make_participant
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Rig

N = 12
MOCO = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOCO", "MOSAIC"], "SeriesDescription": "MoCoSeries"}


class Console:
    """Writes volumes of one participant into an export folder, and a daemon that looks at it every second."""

    def __init__(self, out: Path, **scanner: Any) -> None:
        participant = make_participant(5, PROTOCOL, ResponseParameters(n_responsive=60))
        self._volumes = list(Acquisition(participant, None).run(1, (), np.zeros((0, 60)), N))
        self.export = out / "export"
        self.export.mkdir()
        self.clock = FakeClock()
        self._settings = {
            "session": {"participant": "sim", "output": "."},
            "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling", **scanner},
        }
        self._out = out
        self.rig: Rig | None = None

    def start(self) -> Rig:
        self.rig = Rig(parse(self._settings, root=self._out), self.clock)
        return self.rig

    def write(self, series: int, index: int, *, slice_times_s: Any = PROTOCOL.slice_times_s, **labels: Any) -> Path:
        recorded = mosaic.MosaicSeries(
            study="irregular",
            number=series,
            affine=PROTOCOL.affine,
            t_r_s=PROTOCOL.t_r_s,
            slice_times_s=slice_times_s,
            start=datetime.datetime(2001, 1, 1),
        )
        made = mosaic.dataset(recorded, index + 1, self._volumes[index])
        for name, value in labels.items():
            setattr(made, name, value)
        path = self.export / f"001_{series:06d}_{index + 1:06d}.dcm"
        made.save_as(path, enforce_file_format=True)
        return path

    def scan(self, series: int, indices: range) -> None:
        for index in indices:
            self.write(series, index)
            self.wait(PROTOCOL.t_r_s)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.clock.sleep(0.5)

    def told(self) -> tuple[list[tuple[int, int]], list[tuple[int, int | None, str]]]:
        """Volumes, and what was skipped with the first word of why."""
        assert self.rig is not None
        recorder = self.rig.recorder
        skipped = [(m.run, m.volume, m.reason.split(":")[0]) for m in recorder.of(wire.Skipped)]
        return [(m.run, m.volume) for m in recorder.of(wire.Volume)], skipped

    def ended(self) -> list[tuple[int, int, int]]:
        """Runs that ended: volumes received and skipped."""
        assert self.rig is not None
        return [(m.run, m.received, m.skipped) for m in self.rig.recorder.of(wire.Run) if m.state == "ended"]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    yield made
    if made.rig is not None:
        made.rig.finish()


def whole(run: int, count: int = N) -> list[tuple[int, int]]:
    return [(run, index) for index in range(count)]


def test_a_run_that_is_under_way_is_joined_at_its_own_indices(console: Console) -> None:
    for index in range(7):
        console.write(3, index)
    console.start()
    console.scan(3, range(7, N))
    assert console.told() == (whole(1), [])


def test_a_run_whose_beginning_was_purged_is_joined_with_missing_volumes(console: Console) -> None:
    for index in range(3, 7):
        console.write(3, index)
    console.start()
    console.wait(5.0)
    console.scan(3, range(7, N))
    assert console.told() == (whole(1)[3:], [(1, index, "missing") for index in range(3)])


def test_a_run_is_aborted_with_half_a_volume_and_the_next_one_is_whole(console: Console) -> None:
    console.start()
    console.scan(3, range(5))
    half = console.write(3, 5)
    os.truncate(half, half.stat().st_size // 2)
    console.wait(1.0)
    console.scan(4, range(N))
    volumes, skipped = console.told()
    assert volumes == whole(1, 5) + whole(2)
    assert skipped == [(1, 5, "truncated")]
    console.wait(10.0)
    assert console.ended() == [(1, 5, 0)]


def test_a_run_that_is_aborted_before_a_pause_counts_its_half_volume(console: Console) -> None:
    console.start()
    console.scan(3, range(5))
    half = console.write(3, 5)
    os.truncate(half, half.stat().st_size // 2)
    console.wait(20.0)
    console.scan(4, range(N))
    assert console.told() == (whole(1, 5) + whole(2), [(1, 5, "truncated")])
    assert console.ended() == [(1, 5, 1)]


def test_a_run_that_is_restarted_is_a_new_run(console: Console) -> None:
    console.start()
    console.scan(3, range(4))
    console.scan(4, range(N))
    assert console.told() == (whole(1, 4) + whole(2), [])


@pytest.mark.parametrize(
    ("announced", "end", "short"),
    [(N, {}, True), (4, {}, False), (None, {}, False), (N, {"volumes": 4}, False), (4, {"volumes": N}, True)],
)
def test_a_run_that_lacks_announced_volumes_when_the_next_begins_is_a_fault(
    console: Console, announced: int | None, end: dict[str, int], short: bool
) -> None:
    rig = console.start()
    rig.request(requests.Event, kind="run_start", run=1, expected_volumes=announced)
    console.scan(3, range(3))
    if end:
        rig.request(requests.Event, kind="run_end", run=1, **end)
    console.scan(3, range(3, 4))
    console.scan(4, range(2))
    assert console.told() == (whole(1, 4) + whole(2, 2), [])
    found = [(fault.run, fault.part, fault.reason) for fault in rig.recorder.of(wire.Fault)]
    reason = f"run 1 had 4 of {N} volumes when the scanner began run 2"
    assert found == ([(1, "experiment", reason)] if short else [])


def test_a_series_that_comes_beside_each_volume_is_named_once(console: Console) -> None:
    rig = console.start()
    for index in range(N):
        if index == 6:
            rig._restart()
        console.write(4, index, **MOCO)
        console.scan(3, range(index, index + 1))
    console.scan(5, range(2))
    volumes, skipped = console.told()
    assert volumes == whole(1) + whole(2, 2)
    assert skipped == [(0, None, "left out")]


@pytest.mark.parametrize(("counted_s", "faults"), [(PROTOCOL.t_r_s, 0), (2.0, 1)])
def test_an_experiment_that_counts_on_another_repetition_time_is_a_fault(
    console: Console, counted_s: float, faults: int
) -> None:
    rig = console.start()
    rig.request(requests.Event, kind="run_start", run=1)
    console.write(3, 0)
    console.wait(1.0)
    rig.request(requests.Event, kind="run_start", run=2, t_r_s=counted_s)
    rig._restart()
    console.scan(4, range(3))
    assert console.told() == (whole(1, 1) + whole(2, 3), [])
    found = [(fault.run, fault.part, fault.reason) for fault in rig.recorder.of(wire.Fault)]
    told = f"run 2: repetition time: expected 2 s as the experiment announced, got {PROTOCOL.t_r_s} s"
    assert found == [(2, "experiment", told)] * faults


def test_timing_that_cannot_be_true_is_repaired_or_a_fault(console: Console) -> None:
    """Run 1 tells the time of a shot, which acquisition times repair; run 2 slice times beyond the repetition time."""
    rig = console.start()
    for index in range(4):
        console.write(3, index, RepetitionTime=55.0)
    console.wait(1.0)
    assert not rig.recorder.of(wire.Fault)
    late = np.array(PROTOCOL.slice_times_s) * 10
    for index in range(3):
        console.write(4, index, slice_times_s=late)
    console.wait(10.0)
    assert console.told() == (whole(1, 4) + whole(2, 3), [])
    (fault,) = (fault for fault in rig.recorder.of(wire.Fault) if fault.part == "timing")
    assert (fault.run, fault.kind) == (2, "slice_times_s")
    assert f"expected times within the repetition time ({PROTOCOL.t_r_s:g} s)" in fault.reason
    assert fault.degraded
    assert fault.remedy


def test_a_last_volume_that_was_announced_is_missing_once(tmp_path: Path) -> None:
    console = Console(tmp_path, n_volumes=N)
    rig = console.start()
    console.scan(3, range(N - 1))
    rig.request(requests.Event, kind="run_end", run=1, volumes=N)
    console.wait(20.0)
    assert [(run, volume) for run, volume, _ in console.told()[1]] == [(1, N - 1)]
    assert console.ended() == [(1, N - 1, 1)]
    console.scan(4, range(2))
    assert console.told()[0] == whole(1, N - 1) + whole(2, 2)
    rig.finish()
