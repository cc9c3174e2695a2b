"""A watched folder, small files to put into it, and what the watcher told, for tests."""

from __future__ import annotations

import datetime
from pathlib import Path

import nibabel as nib
import numpy as np

from rtdecode.acquire.source import Arrival
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock

SHAPE = (8, 6, 4)


def series(shape: tuple[int, int, int] = SHAPE, number: int = 3) -> mosaic.MosaicSeries:
    return mosaic.MosaicSeries(
        study="test",
        number=number,
        affine=np.diag([3.0, 3.0, 4.0, 1.0]),
        t_r_s=2.0,
        slice_times_s=np.arange(shape[2]) * 2.0 / shape[2],
        start=datetime.datetime(2001, 2, 3, 4, 5, 6),
    )


def put(folder: Path, instance: int, number: int = 3, shape: tuple[int, int, int] = SHAPE) -> Path:
    data = np.random.default_rng([number, instance]).integers(1, 4000, shape).astype(np.uint16)
    return mosaic.write(folder, series(shape, number), instance, data)


def watch(folder: Path, clock: FakeClock, **changes: object) -> FolderWatcher:
    return FolderWatcher(ScannerSettings(export_dir=folder, watch="polling", **changes), "s1", clock)  # type: ignore[arg-type]


def told(arrivals: list[Arrival]) -> list[tuple[int, int | None, str]]:
    """Run, volume and the first word of the reason ("volume" for a good one)."""
    out = []
    for arrival in arrivals:
        item = arrival.item
        if isinstance(item, Volume):
            out.append((item.stamp.run, item.stamp.volume, "volume"))
        else:
            out.append((item.run, item.volume, item.reason.split(":")[0]))
    return out


def nifti(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(1, 4000, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), folder / name)
    return folder / name
