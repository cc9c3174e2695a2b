"""Watches the scanner's export folder.

A directory scan is the truth; native file events only hasten the next one, since they are lost on network
mounts and on overflow. A file that has been dealt with is never opened again.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from rtdecode.acquire import nifti
from rtdecode.acquire.dicom import DicomReader
from rtdecode.acquire.order import RunQueue
from rtdecode.acquire.source import Arrival
from rtdecode.acquire.stored import Identity, StoredVolume, ends_blank
from rtdecode.clock import Clock
from rtdecode.errors import IncompleteFile, VolumeError
from rtdecode.records import Skipped, Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings

logger = logging.getLogger(__name__)

_FILES_PER_POLL = 64
_LARGEST_JUMP = 5000
_DEEPEST_FOLDER = 4
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~")
_OTHERS = (".json", ".txt", ".tsv", ".csv", ".log", ".xml", ".bval", ".bvec", ".par", ".rec", ".ini", ".md")
_DIGITS = re.compile(r"(\d+)")


class _Reader(Protocol):
    def read(self, path: Path) -> StoredVolume: ...

    def identify(self, path: Path) -> Identity | None: ...


@dataclass(slots=True)
class _Unfinished:
    """A file that was not complete when last looked at: its size and time of change, and since when so."""

    state: tuple[int, int]
    since_s: float


@dataclass(slots=True)
class _Run:
    """One series that became a run."""

    number: int
    first_instance: int
    queue: RunQueue
    shape: tuple[int, ...] | None = None
    zero_tail: int = 0


class FolderWatcher:
    """A `Source` over a folder that a scanner writes to, sub-folders included.

    The first series seen is run 1, the next one run 2 (several first seen together: by series number); NIfTI
    files that name their run (``run-03`` in the name or the folder) keep that number. Index 0 is the first
    volume after ``n_dummy``; exported dummies are reported as `Skipped` without an index. Volumes of a run
    wait until all earlier runs have nothing left behind a gap.

    Parameters
    ----------
    settings : ScannerSettings
    session : str
        Session identifier for the stamps.
    clock : Clock
    native : bool
        Also use the operating system's file events; without, `wait` sleeps on the clock.
    """

    def __init__(self, settings: ScannerSettings, session: str, clock: Clock, *, native: bool = True) -> None:
        self._settings = settings
        self._session = session
        self._clock = clock
        self._dicom = DicomReader()
        self._nifti = nifti.NiftiReader(settings.export_dir)
        self._settled: set[str] = set()
        self._unfinished: dict[str, _Unfinished] = {}
        self._uids: set[str] = set()
        self._runs: dict[str, _Run] = {}
        self._backlog = False
        self._wake = threading.Event()
        self._problem: str | None = None
        self._observer = _observe(settings.export_dir, self._wake) if native else None
        self._native = native

    @property
    def problem(self) -> str | None:
        """Why the folder could not be listed at the last poll, or None."""
        return self._problem

    def poll(self) -> list[Arrival]:
        """Scan the folder once and return what may go on, in index order per run."""
        self._wake.clear()
        now_s = self._clock.monotonic()
        out: list[Arrival] = []
        complete: list[tuple[Path, StoredVolume]] = []
        names = self._new_names()
        self._backlog = any(name not in self._unfinished for name in names[_FILES_PER_POLL:])
        for name in names[:_FILES_PER_POLL]:
            path = Path(name)
            try:
                complete.append((path, self._read(path, now_s)))
            except FileNotFoundError:
                self._unfinished.pop(name, None)
            except (IncompleteFile, OSError) as error:
                out.extend(self._postpone(path, error, now_s))
            except VolumeError as error:
                if ends_blank(path):  # allocated first, perhaps: what is wrong may be what is not written yet
                    out.extend(self._postpone(path, error, now_s))
                else:
                    out.extend(self._reject(path, f"unreadable: {error}", now_s))
        complete.sort(
            key=lambda pair: (
                pair[1].identity.series_number,
                pair[1].identity.series_uid,
                pair[1].identity.instance,
            )
        )
        for path, stored in complete:
            self._settle(path)
            self._open_run(stored.identity, complete)
            out.extend(self._place(path, stored, now_s))
        out.extend(self._release(now_s))
        return out

    def wait(self, timeout_s: float) -> None:
        """Return on a file event, or after `timeout_s` seconds; at once while files seen are still unread."""
        if self._backlog:
            return
        if self._native:
            self._wake.wait(timeout_s)
        else:
            self._clock.sleep(timeout_s)

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_names(self) -> list[str]:
        """Paths of files not dealt with, in natural order; those that were incomplete at the last look come last."""
        try:
            names = [name for name in _files(str(self._settings.export_dir), 0) if name not in self._settled]
        except OSError as error:
            if self._problem is None:
                logger.warning("cannot list the export folder: %s", error)
            self._problem = str(error)
            return []
        self._problem = None
        self._unfinished = {name: self._unfinished[name] for name in names if name in self._unfinished}
        return sorted(names, key=lambda name: (name in self._unfinished, _natural(name)))

    def _reader(self, path: Path) -> _Reader:
        return self._nifti if path.name.endswith(nifti.SUFFIXES) else self._dicom

    def _read(self, path: Path, now_s: float) -> StoredVolume:
        stored = self._reader(path).read(path)
        if stored.zero_tail > stored.data.shape[0] and not self._zeros_explained(path, stored, now_s):
            raise IncompleteFile(path, "pixels", "values to the end", f"{stored.zero_tail} zeros at the end")
        return stored

    def _zeros_explained(self, path: Path, stored: StoredVolume, now_s: float) -> bool:
        """Accept a blank end that the series has had before, or that stayed and may be a blank edge.

        A blank edge is less than a slice; a NIfTI series may be masked from its first volume on.
        """
        run = self._runs.get(stored.identity.series_uid)
        if run is not None and stored.zero_tail <= run.zero_tail:
            return True
        waited = self._unfinished.get(str(path))
        if waited is None or now_s - waited.since_s < self._settings.gap_timeout_s:
            return False
        masked = run is None and path.name.endswith(nifti.SUFFIXES)
        return masked or stored.zero_tail < stored.data.shape[0] * stored.data.shape[1]

    def _postpone(self, path: Path, error: Exception, now_s: float) -> list[Arrival]:
        """Wait for an incomplete file as long as it changes, then give it up."""
        try:
            status = path.stat()
        except OSError:
            state = (-1, 0)
        else:
            state = (status.st_size, status.st_mtime_ns)
        known = self._unfinished.get(str(path))
        if known is None or known.state != state:
            self._unfinished[str(path)] = _Unfinished(state, now_s)
            return []
        if now_s - known.since_s < self._settings.gap_timeout_s:
            return []
        kind = "truncated" if isinstance(error, IncompleteFile) else "unreadable"
        return self._reject(path, f"{kind}: {error}", now_s)

    def _reject(self, path: Path, reason: str, now_s: float) -> list[Arrival]:
        """Give a file up; where it says which volume of a known run it is, that volume counts as missing."""
        self._settle(path)
        identity = self._reader(path).identify(path)
        run = self._runs.get(identity.series_uid) if identity is not None else None
        if identity is None or run is None:
            return [self._surplus(path, reason)]
        index = self._index(run, identity.instance)
        if not self._plausible(run, index) or not run.queue.takes(index):
            return [Arrival(path=path, item=Skipped(run=run.number, volume=None, path=path.name, reason=reason))]
        skipped = Skipped(run=run.number, volume=index, path=path.name, reason=reason)
        run.queue.offer(index, Arrival(path=path, item=skipped), now_s)
        return []

    def _surplus(self, path: Path, reason: str) -> Arrival:
        """Report a file of no known run."""
        latest = max((known.number for known in self._runs.values()), default=0)
        return Arrival(path=path, item=Skipped(run=latest, volume=None, path=path.name, reason=reason))

    def _settle(self, path: Path) -> None:
        self._unfinished.pop(str(path), None)
        self._settled.add(str(path))

    def _open_run(self, identity: Identity, complete: list[tuple[Path, StoredVolume]]) -> None:
        """Make a run of a new series, unless it begins with a copy of a volume of another.

        It counts from 0 if an instance 0 is there by now, complete or not, else from 1.
        """
        if identity.series_uid in self._runs or identity.uid in self._uids:
            return
        taken = {run.number for run in self._runs.values()}
        number = identity.run if identity.run is not None and identity.run > 0 else len(taken) + 1
        while number in taken:
            number += 1
        begun = [self._reader(path).identify(path) for path in map(Path, self._unfinished)]
        seen = [*(stored.identity for _, stored in complete), *(other for other in begun if other is not None)]
        numbers = [other.instance for other in seen if other.series_uid == identity.series_uid]
        queue = RunQueue(self._settings.gap_timeout_s)
        self._runs[identity.series_uid] = _Run(number, 0 if 0 in numbers else 1, queue)

    def _index(self, run: _Run, instance: int) -> int:
        exported = self._settings.n_dummy if self._settings.dummies_exported else 0
        return instance - run.first_instance - exported

    def _plausible(self, run: _Run, index: int) -> bool:
        return 0 <= index <= run.queue.next_index + _LARGEST_JUMP

    def _place(self, path: Path, stored: StoredVolume, now_s: float) -> list[Arrival]:
        """Put a complete volume into its run, or say why it has no place."""
        run = self._runs.get(stored.identity.series_uid)
        if run is None:
            return [self._surplus(path, "duplicate: the content has come before, in another series")]
        index = self._index(run, stored.identity.instance)
        exported = self._settings.n_dummy if self._settings.dummies_exported else 0
        reason = None
        if stored.identity.uid in self._uids:
            reason = f"duplicate: the content of volume {index} has come before"
        elif -exported <= index < 0:
            number = stored.identity.instance - run.first_instance + 1
            reason = f"dummy: {number} of {exported} before the steady state"
        elif not self._plausible(run, index):
            reason = f"out of range: volume {index}, expected {run.queue.next_index} or soon after"
        elif index < run.queue.next_index:
            reason = f"late: volume {index} had come or been given up"
        elif not run.queue.takes(index):
            reason = f"duplicate: another file holds volume {index}"
        self._uids.add(stored.identity.uid)
        if reason is not None:
            return [Arrival(path=path, item=Skipped(run=run.number, volume=None, path=path.name, reason=reason))]
        run.shape = run.shape or stored.data.shape
        item: Volume | Skipped
        if stored.data.shape != run.shape:
            wrong = f"wrong shape: expected {run.shape} as in the volumes before, got {stored.data.shape}"
            item = Skipped(run=run.number, volume=index, path=path.name, reason=wrong)
        else:
            item = self._volume(path, stored, run, index)
        run.queue.offer(index, Arrival(path=path, item=item), now_s)
        return []

    def _volume(self, path: Path, stored: StoredVolume, run: _Run, index: int) -> Volume:
        problems: list[str] = []
        if stored.zero_tail > max(stored.data.shape[0], run.zero_tail):
            run.zero_tail = stored.zero_tail
            problems.append(f"the last {stored.zero_tail} values are zero: blank, or never written")
        t_r_s = stored.t_r_s if stored.t_r_s is not None else self._settings.t_r_s
        if (
            self._settings.t_r_s is not None
            and t_r_s is not None
            and not np.isclose(t_r_s, self._settings.t_r_s, rtol=1e-3)
        ):
            problems.append(f"repetition time: expected {self._settings.t_r_s} s by the settings, got {t_r_s} s")
        stamp = Stamp(
            session=self._session,
            run=run.number,
            volume=index,
            acquired_s=stored.acquired_s,
            received_s=self._clock.wall(),
            received_mono_s=self._clock.monotonic(),
        )
        return Volume(
            stamp=stamp,
            data=frozen(stored.data),
            slope=stored.slope,
            intercept=stored.intercept,
            affine=frozen(stored.affine),
            t_r_s=t_r_s,
            slice_times_s=None if stored.slice_times_s is None else frozen(stored.slice_times_s),
            series_uid=stored.identity.series_uid,
            instance=stored.identity.instance,
            path=path.name,
            problems=tuple(problems),
        )

    def _release(self, now_s: float) -> Iterator[Arrival]:
        for run in sorted(self._runs.values(), key=lambda run: run.number):
            for index, arrival in run.queue.release(now_s):
                yield arrival or self._given_up(run, index)
            if run.queue.held:
                return

    def _given_up(self, run: _Run, index: int) -> Arrival:
        reason = f"missing: volume {index} did not come within {self._settings.gap_timeout_s:g} s of a later one"
        return Arrival(path=None, item=Skipped(run=run.number, volume=index, path="", reason=reason))


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("created", "modified", "moved", "closed"):
            self._wake.set()


def _observe(folder: Path, wake: threading.Event) -> BaseObserver | None:
    """Start native events; None where the system has none to give, polling then does all."""
    observer = Observer()
    observer.schedule(_Waker(wake), str(folder), recursive=True)
    try:
        observer.start()
    except OSError as error:
        logger.warning("no file events for %s, polling only: %s", folder, error)
        return None
    return observer


def _files(folder: str, depth: int) -> Iterator[str]:
    """Paths of files that may hold a volume, below `folder`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth < _DEEPEST_FOLDER:
                    yield from _files(entry.path, depth + 1)
            elif not entry.name.lower().endswith(_UNFINISHED + _OTHERS):
                yield entry.path


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``i9`` before ``i10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
