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
from rtdecode.records import Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings
from rtdecode.simulate import mosaic_writer as mosaic
from rtdecode.testing import check_source
from tests.conftest import FakeClock

SHAPE = (6, 5, 4)
Scanner = Callable[[int, int], None]


class ListedSource:
    """A source without a scanner: volumes are put in by hand, in order."""

    problem: str | None = None
    looks = 0

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
        self.looks += 1
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


def test_a_source_keeps_the_contract(source_and_scanner: tuple[Source, Scanner], clock: FakeClock) -> None:
    source, scan = source_and_scanner

    def scanned(run: int, index: int) -> np.ndarray:
        scan(run, index)
        return values(run, index)

    check_source(source, scanned, clock)
