"""Random sequences of what scanners do wrong, against a model of what must be delivered at each look."""

from __future__ import annotations

import datetime
import gzip
import math
import os
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from numpy.typing import NDArray

from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock

SHAPE = (8, 6, 4)
GAP_S = 5.0
HEADLESS_BYTES = 200
Told = tuple[int, int, bool]


@dataclass
class File:
    """A file of the export: what it will hold, and how much of it is there."""

    series: int
    index: int
    content: bytes
    zeros: bool = False
    cut: int | None = None
    changes: int = 0

    @property
    def complete(self) -> bool:
        return self.cut is None


@dataclass
class Series:
    """The model of one series: what waits (since when, good or bad), and what is next."""

    run: int
    next: int = 0
    latest_s: float = -math.inf
    waiting: dict[int, tuple[float, bool]] = field(default_factory=dict)

    def takes(self, index: int) -> bool:
        return index >= self.next and index not in self.waiting

    def release(self, now_s: float) -> list[Told]:
        out = []
        while self.waiting:
            if self.next in self.waiting:
                since_s, good = self.waiting.pop(self.next)
                self.latest_s = max(self.latest_s, since_s)
            elif now_s - max(self.latest_s, min(since_s for since_s, _ in self.waiting.values())) >= GAP_S:
                good = False
            else:
                break
            out.append((self.run, self.next, good))
            self.next += 1
        return out


class Model:
    """What a watcher must tell at each look."""

    def __init__(self) -> None:
        self.series: dict[int, Series] = {}
        self.settled: set[str] = set()
        self.seen: set[tuple[int, int]] = set()
        self.unfinished: dict[str, tuple[int, float]] = {}

    def look(self, files: dict[str, File], now_s: float, named: bool) -> tuple[list[Told], int]:
        """Return what has an index, in order, and how many files are named without one."""
        spare = 0
        new = {name: file for name, file in files.items() if name not in self.settled}
        for name, file in new.items():
            if file.complete:
                self.settled.add(name)
                continue
            changes, since_s = self.unfinished.get(name, (-1, now_s))
            if changes != file.changes:
                self.unfinished[name] = file.changes, now_s
            elif now_s - since_s >= GAP_S:
                self.settled.add(name)
                spare += not self._take(file, now_s, known=named or (file.cut or 0) > HEADLESS_BYTES)
        for file in sorted(
            (file for file in new.values() if file.complete), key=lambda file: (file.series, file.index)
        ):
            self.series.setdefault(file.series, Series(len(self.series) + 1))
            spare += not self._take(file, now_s, known=(file.series, file.index) not in self.seen)
            self.seen.add((file.series, file.index))
        told: list[Told] = []
        for series in sorted(self.series.values(), key=lambda series: series.run):
            told += series.release(now_s)
            if series.waiting:
                break
        return told, spare

    def _take(self, file: File, now_s: float, *, known: bool) -> bool:
        series = self.series.get(file.series)
        if series is None or not known or not series.takes(file.index):
            return False
        series.waiting[file.index] = now_s, file.complete
        return True


class FaultMachine(RuleBasedStateMachine):
    """Does to an export folder what scanners do, in any order."""

    named: ClassVar[bool]
    """Whether names tell series and index, whatever the content."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.clock = FakeClock()
        scanner = ScannerSettings(export_dir=self.folder, gap_timeout_s=GAP_S, watch="polling", first_instance=1)
        self.source = FolderWatcher(scanner, "s1", self.clock)
        self.model = Model()
        self.files: dict[str, File] = {}
        self.named_files: list[Path] = []
        self.writes = 0

    def name(self, series: int, index: int, copy: bool = False) -> str:
        raise NotImplementedError

    def content(self, series: int, index: int) -> bytes:
        raise NotImplementedError

    def _write(self, name: str) -> None:
        file = self.files[name]
        self.writes += 1
        file.changes = self.writes
        raw = file.content[: file.cut]
        (self.folder / name).write_bytes(raw + bytes(len(file.content) - len(raw) if file.zeros else 0))
        os.utime(self.folder / name, (file.changes, file.changes))

    def _begin(self, series: int, index: int, *, zeros: bool = False, cut: int | None = None) -> None:
        name = self.name(series, index)
        if name not in self.files:
            self.files[name] = File(series, index, self.content(series, index), zeros, cut)
            self._write(name)

    @rule(series=st.integers(1, 3), index=st.integers(0, 8))
    def a_file_comes(self, series: int, index: int) -> None:
        self._begin(series, index)

    @rule(series=st.integers(1, 3), index=st.integers(0, 8), zeros=st.booleans(), data=st.data())
    def a_file_begins(self, series: int, index: int, zeros: bool, data: st.DataObject) -> None:
        self._begin(series, index, zeros=zeros, cut=data.draw(st.sampled_from(self.cuts(series, index))))

    def cuts(self, series: int, index: int) -> list[int]:
        """Where files may break off: in the header, before it tells anything, or in the picture."""
        size = len(self.content(series, index))
        return [*range(0, HEADLESS_BYTES, 20), size - 330, size - 200, size - 100]

    @precondition(lambda self: any(not file.complete for file in self.files.values()))
    @rule(data=st.data(), end=st.booleans())
    def a_file_goes_on(self, data: st.DataObject, end: bool) -> None:
        name = data.draw(st.sampled_from([name for name, file in self.files.items() if not file.complete]))
        file = self.files[name]
        more = [cut for cut in self.cuts(file.series, file.index) if cut > (file.cut or 0)]
        file.cut = None if end or not more else more[0]
        self._write(name)

    @precondition(lambda self: any(not file.complete for file in self.files.values()))
    @rule(data=st.data())
    def a_broken_file_is_removed(self, data: st.DataObject) -> None:
        broken = [n for n, file in self.files.items() if not file.complete and n not in self.model.settled]
        if broken:
            name = data.draw(st.sampled_from(broken))
            (self.folder / name).unlink()
            self.model.unfinished.pop(name, None)
            del self.files[name]

    @precondition(lambda self: any(file.complete for file in self.files.values()))
    @rule(data=st.data())
    def a_copy_comes(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from([file for file in self.files.values() if file.complete]))
        name = self.name(file.series, file.index, copy=True)
        if name not in self.files:
            self.files[name] = File(file.series, file.index, file.content)
            self._write(name)

    @rule(seconds=st.floats(0.1, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule()
    def somebody_looks(self) -> None:
        arrivals = self.source.poll()
        told, spare = self.model.look(self.files, self.clock.now, self.named)
        indexed: list[Told] = []
        for arrival in arrivals:
            item = arrival.item
            self.named_files += [arrival.path] if arrival.path is not None else []
            if isinstance(item, Volume):
                indexed.append((item.stamp.run, item.stamp.volume, True))
                series = next(number for number, one in self.model.series.items() if one.run == item.stamp.run)
                np.testing.assert_array_equal(item.data, values(series, item.stamp.volume))
            elif item.volume is not None:
                assert item.reason
                indexed.append((item.run, item.volume, False))
        assert indexed == told
        assert sum(not isinstance(a.item, Volume) and a.item.volume is None for a in arrivals) == spare

    def teardown(self) -> None:
        with self.temporary:
            for _ in range(8):
                self.clock.sleep(GAP_S)
                self.somebody_looks()
            assert not any(series.waiting for series in self.model.series.values())
            assert sorted(self.named_files) == sorted(self.folder.iterdir())


@cache
def values(series: int, index: int) -> NDArray[np.uint16]:
    return np.random.default_rng([series, index]).integers(1, 4000, SHAPE).astype(np.uint16)


@cache
def dicom(series: int, index: int) -> bytes:
    recorded = mosaic.MosaicSeries(
        study="machine",
        number=series,
        affine=np.eye(4),
        t_r_s=2.0,
        slice_times_s=np.arange(SHAPE[2]) * 0.5,
        start=datetime.datetime(2001, 1, 1, hour=series),  # what is found together is ordered by it
    )
    with tempfile.TemporaryDirectory() as folder:
        return mosaic.write(Path(folder), recorded, index + 1, values(series, index)).read_bytes()


@cache
def nifti(series: int, index: int) -> bytes:
    return gzip.compress(nib.Nifti1Image(values(series, index), np.eye(4)).to_bytes(), mtime=0)


class DicomMachine(FaultMachine):
    named = False

    def name(self, series: int, index: int, copy: bool = False) -> str:
        return f"{'copy_' if copy else ''}{series}_{index + 1}.dcm"

    def content(self, series: int, index: int) -> bytes:
        return dicom(series, index)


class NiftiMachine(FaultMachine):
    named = True

    def name(self, series: int, index: int, copy: bool = False) -> str:
        return f"s{series}_{index + 1:0{3 if copy else 1}d}.nii.gz"

    def content(self, series: int, index: int) -> bytes:
        return nifti(series, index)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
class TestDicom(DicomMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class TestNifti(NiftiMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
