"""What every `Source` keeps to; the real one on both formats, and a list that plays one."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import nibabel as nib
import numpy as np
import pytest

from rtdecode.acquire.source import Arrival, Source
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Skipped, Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock

SHAPE = (6, 5, 4)
Scanner = Callable[[int, int], None]


class ListedSource:
    """A source without a scanner: volumes are put in by hand, in order."""

    problem: str | None = None

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._waiting: list[Arrival] = []

    def put(self, run: int, index: int) -> None:
        stamp = Stamp(
            session="s1",
            run=run,
            volume=index,
            received_s=self._clock.wall(),
            received_mono_s=self._clock.monotonic(),
        )
        volume = Volume(
            stamp=stamp,
            data=frozen(values(run, index)),
            affine=frozen(np.eye(4)),
            t_r_s=2.0,
            slice_times_s=None,
            series_uid=f"run-{run}",
            instance=index + 1,
            path=f"{index}",
        )
        self._waiting.append(Arrival(path=Path(f"{index}"), item=volume))

    def poll(self) -> list[Arrival]:
        out, self._waiting = self._waiting, []
        return out

    def wait(self, timeout_s: float) -> None:
        if not self._waiting:
            self._clock.sleep(timeout_s)

    def close(self) -> None:
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def values(run: int, index: int) -> np.ndarray:
    return np.random.default_rng([run, index]).integers(1, 4000, SHAPE).astype(np.uint16)


@pytest.fixture(params=["listed", "dicom", "nifti"])
def source_and_scanner(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> tuple[Source, Scanner]:
    if request.param == "listed":
        listed = ListedSource(clock)
        return listed, listed.put
    watcher = FolderWatcher(ScannerSettings(export_dir=tmp_path, watch="polling", first_instance=1), "s1", clock)

    def dicom(run: int, index: int) -> None:
        series = mosaic.MosaicSeries(
            study="contract",
            number=run,
            affine=np.eye(4),
            t_r_s=2.0,
            slice_times_s=np.arange(SHAPE[2]) * 0.5,
            start=datetime.datetime(2001, 1, 1),
        )
        mosaic.write(tmp_path, series, index + 1, values(run, index))

    def nifti(run: int, index: int) -> None:
        nib.save(nib.Nifti1Image(values(run, index), np.eye(4)), tmp_path / f"run-{run}_{index + 1:04d}.nii")

    return watcher, dicom if request.param == "dicom" else nifti


def test_nothing_comes_of_nothing(source_and_scanner: tuple[Source, Scanner], clock: FakeClock) -> None:
    source, _ = source_and_scanner
    before = clock.monotonic()
    assert source.poll() == []
    source.wait(0.5)
    assert before <= clock.monotonic() <= before + 0.5
    assert source.poll() == []


def test_each_volume_comes_once_in_order_with_its_stamp(
    source_and_scanner: tuple[Source, Scanner], clock: FakeClock
) -> None:
    source, scan = source_and_scanner
    seen = []
    for run in (1, 2):
        for index in range(4):
            scan(run, index)
            if index % 2:
                clock.sleep(1.0)
                seen += [(arrival, clock.monotonic()) for arrival in source.poll()]
    assert source.poll() == []
    stamps = [arrival.item.stamp for arrival, _ in seen if isinstance(arrival.item, Volume)]
    assert [(stamp.run, stamp.volume) for stamp in stamps] == [(run, index) for run in (1, 2) for index in range(4)]
    assert all(stamp.session == "s1" and stamp.trial is None for stamp in stamps)
    assert all(arrival.item.stamp.received_mono_s <= now for arrival, now in seen if isinstance(arrival.item, Volume))


def test_volumes_are_read_only_and_whole(source_and_scanner: tuple[Source, Scanner]) -> None:
    source, scan = source_and_scanner
    scan(1, 0)
    (arrival,) = source.poll()
    assert not isinstance(arrival.item, Skipped)
    np.testing.assert_array_equal(arrival.item.data, values(1, 0))
    for array in (arrival.item.data, arrival.item.affine):
        assert not array.flags.writeable
    assert arrival.path is not None
    assert arrival.path.name == arrival.item.path


def test_closing_twice_is_fine(source_and_scanner: tuple[Source, Scanner]) -> None:
    source, _ = source_and_scanner
    with source:
        source.close()
    source.close()
