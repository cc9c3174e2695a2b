"""Watches the scanner's export folder.

A directory scan is the truth; native file events only hasten the next one, since they are lost on network
mounts and on overflow. A file that has been dealt with is never opened again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import folder, readers, stack
from rtdecode.acquire.order import Run, RunQueue
from rtdecode.acquire.source import Arrival
from rtdecode.acquire.stored import MAGNITUDE, Identity, Reading, StoredSlice, StoredVolume
from rtdecode.clock import Clock
from rtdecode.errors import IncompleteFile, SurplusSlice, VolumeError
from rtdecode.records import Skipped, Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings

logger = logging.getLogger(__name__)

_FILES_PER_POLL = 64
_LARGEST_JUMP = 5000
_BLANK_MARGIN = 10


class FolderWatcher:
    """A `Source` over a folder that a scanner writes to, sub-folders included.

    The first series seen is run 1, the next one run 2 (several first seen together: by series number); NIfTI
    files that name their run (``run-03`` in the name or the folder) keep that number. Index 0 is the first
    volume after ``n_dummy``; exported dummies are reported as `Skipped` without an index. Volumes of a run
    wait until all earlier runs have nothing left behind a gap. A file may hold a slice, a volume or many, and
    more may come in a file that grows. Of several echoes the first seen is used, of complex images the
    magnitude.

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
        affine = None if settings.affine is None else np.array([*settings.affine, (0.0, 0.0, 0.0, 1.0)])
        self._readers = readers.Readers(settings.export_dir, t_r_s=settings.t_r_s, affine=affine)
        self._stacker = stack.Stacker()
        self._partial: dict[stack.Key, folder.Unfinished] = {}
        self._growing: dict[str, folder.Growing] = {}
        self._blank: dict[tuple[str, int], int] = {}
        self._settled: set[str] = set()
        self._unfinished: dict[str, folder.Unfinished] = {}
        self._uids: set[str] = set()
        self._runs: dict[str, Run] = {}
        self._backlog = False
        self._wake = threading.Event()
        self._problem: str | None = None
        self._observer = folder.observe(settings.export_dir, self._wake) if native else None
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
        self._backlog = len(names) > _FILES_PER_POLL
        for name in names[:_FILES_PER_POLL]:
            path = Path(name)
            try:
                complete.extend((path, stored) for stored in self._read(path, now_s))
            except FileNotFoundError:
                self._unfinished.pop(name, None)
            except (IncompleteFile, OSError) as error:
                out.extend(self._postpone(path, error, now_s))
            except SurplusSlice as error:
                out.append(self._surplus(path, f"duplicate: {error}"))
            except VolumeError as error:
                out.extend(self._reject(path, f"unreadable: {error}", now_s))
        out.extend(self._expire(now_s))
        complete.sort(key=lambda pair: pair[1].identity.order)
        for path, stored in complete:
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
        """Paths of files not dealt with, in natural order."""
        try:
            names = [name for name in folder.files(str(self._settings.export_dir), 0) if self._wanted(name)]
        except OSError as error:
            if self._problem is None:
                logger.warning("cannot list the export folder: %s", error)
            self._problem = str(error)
            return []
        self._problem = None
        return sorted(names, key=folder.natural)

    def _wanted(self, name: str) -> bool:
        grown = self._growing.get(name)
        return name not in self._settled and (grown is None or grown.state != readers.state(Path(name)))

    def _read(self, path: Path, now_s: float) -> list[StoredVolume]:
        """Read a file and return what is whole now; settles the file unless it may bring more."""
        grown = self._growing.get(str(path))
        looked_at = readers.state(path)
        reading = self._readers.read(path, grown.taken if grown else 0)
        out = []
        for stored in reading.volumes:
            if stored.zero_tail > stored.data.shape[0] and not self._zeros_explained(path, stored, now_s):
                if not reading.growing:
                    raise _zeros(path, stored.zero_tail)
                break
            out.append(stored)
        for piece in reading.slices:
            out.extend(self._stack(path, piece, now_s))
        if reading.growing:
            self._grow(path, looked_at, len(out), reading, now_s)
        else:
            self._settle(path)
        return out

    def _grow(self, path: Path, looked_at: tuple[int, int], taken: int, reading: Reading, now_s: float) -> None:
        """Remember how far a growing file has been read, and when to look at it again."""
        grown = self._growing.setdefault(str(path), folder.Growing(None, 0))
        grown.taken += taken
        waiting = taken < len(reading.volumes)
        grown.state = None if taken or waiting else looked_at
        if waiting:
            known = self._unfinished.get(str(path))
            if known is None or known.state != looked_at:
                self._unfinished[str(path)] = folder.Unfinished(looked_at, now_s)
        else:
            self._unfinished.pop(str(path), None)

    def _stack(self, path: Path, piece: StoredSlice, now_s: float) -> list[StoredVolume]:
        """Put a slice to those of its volume."""
        if piece.identity.uid in self._uids:
            raise SurplusSlice(path, "slice", "one that has not come before", "one that has")
        if piece.zero_tail > piece.data.shape[0]:
            place = piece.identity.series_uid, piece.number
            known = self._blank.get(place, 0)
            if not (self._familiar(path, piece.zero_tail, known, piece.data.size) or self._waited(path, now_s)):
                raise _zeros(path, piece.zero_tail)
            self._blank[place] = max(piece.zero_tail, known)
        self._uids.add(piece.identity.uid)
        volume = self._stacker.add(path, piece)
        return [] if volume is None else [volume]

    def _expire(self, now_s: float) -> list[Arrival]:
        """Give up volumes whose missing slices have not come; close those that never said how many they have."""
        out: list[Arrival] = []
        partial = self._stacker.partial
        self._partial = {key: known for key, known in self._partial.items() if key in partial}
        for key, volume in partial.items():
            known = self._partial.get(key)
            state = len(volume.slices), 0
            if known is None or known.state != state:
                self._partial[key] = folder.Unfinished(state, now_s)
            elif now_s - known.since_s >= self._settings.gap_timeout_s:
                try:
                    stored = self._stacker.finish(key)
                except VolumeError as error:
                    out.extend(self._missing(volume.path, volume.identity, f"incomplete: {error}", now_s))
                else:
                    self._open_run(stored.identity, [])
                    out.extend(self._place(volume.path, stored, now_s))
        return out

    def _waited(self, path: Path, now_s: float) -> bool:
        """Whether a file has stayed as it is for as long as a gap is waited for."""
        known = self._unfinished.get(str(path))
        return known is not None and now_s - known.since_s >= self._settings.gap_timeout_s

    def _familiar(self, path: Path, zeros: int, known: int, a_slice: int) -> bool:
        """Whether a blank end is no longer than one seen before; a little longer if the file is at rest."""
        if zeros <= known or not known:
            return zeros <= known
        unfinished = self._unfinished.get(str(path))
        at_rest = unfinished is not None and unfinished.state == readers.state(path)
        return at_rest and zeros <= known + a_slice // _BLANK_MARGIN

    def _zeros_explained(self, path: Path, stored: StoredVolume, now_s: float) -> bool:
        """Accept a blank end that the series has had before, or that stayed and may be a blank edge.

        A blank edge is less than a slice; a NIfTI series may be masked from its first volume on.
        """
        run = self._runs.get(stored.identity.series_uid)
        a_slice = stored.data.shape[0] * stored.data.shape[1]
        if run is not None and self._familiar(path, stored.zero_tail, run.zero_tail, a_slice):
            return True
        if not self._waited(path, now_s) or stored.zero_tail == stored.data.size:
            return False
        masked = run is None and readers.is_nifti(path)
        return masked or stored.zero_tail < a_slice

    def _postpone(self, path: Path, error: Exception, now_s: float) -> list[Arrival]:
        """Wait for an incomplete file as long as it changes, then give it up."""
        state = readers.state(path)
        known = self._unfinished.get(str(path))
        if known is None or known.state != state:
            self._unfinished[str(path)] = folder.Unfinished(state, now_s)
            return []
        if now_s - known.since_s < self._settings.gap_timeout_s:
            return []
        kind = "truncated" if isinstance(error, IncompleteFile) else "unreadable"
        return self._reject(path, f"{kind}: {error}", now_s)

    def _reject(self, path: Path, reason: str, now_s: float) -> list[Arrival]:
        """Give a file up; where it says which volume of a known run it is, that volume counts as missing."""
        self._settle(path)
        identity = self._readers.identify(path)
        if identity is not None:
            self._stacker.drop((identity.series_uid, identity.instance, identity.echo, identity.component))
        return self._missing(path, identity, reason, now_s)

    def _missing(self, path: Path, identity: Identity | None, reason: str, now_s: float) -> list[Arrival]:
        """Report what could not be used; where it is a volume of a known run that is still wanted, in its place."""
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
        """Report a file that takes no index away."""
        self._settle(path)
        latest = max((known.number for known in self._runs.values()), default=0)
        return Arrival(path=path, item=Skipped(run=latest, volume=None, path=path.name, reason=reason))

    def _settle(self, path: Path) -> None:
        self._unfinished.pop(str(path), None)
        self._growing.pop(str(path), None)
        self._settled.add(str(path))

    def _open_run(self, identity: Identity, complete: list[tuple[Path, StoredVolume]]) -> None:
        """Make a run of a new series; unless it says, it counts from 0 if it has an instance 0 by now, else from 1."""
        if identity.series_uid in self._runs:
            return
        taken = {run.number for run in self._runs.values()}
        number = identity.run if identity.run is not None and identity.run > 0 else len(taken) + 1
        while number in taken:
            number += 1
        numbers = [s.identity.instance for _, s in complete if s.identity.series_uid == identity.series_uid]
        first = identity.first if identity.first is not None else (0 if 0 in numbers else 1)
        self._runs[identity.series_uid] = Run(number, first, RunQueue(self._settings.gap_timeout_s))

    def _index(self, run: Run, instance: int) -> int:
        exported = self._settings.n_dummy if self._settings.dummies_exported else 0
        return instance - run.first_instance - exported

    def _plausible(self, run: Run, index: int) -> bool:
        return 0 <= index <= run.queue.next_index + _LARGEST_JUMP

    def _place(self, path: Path, stored: StoredVolume, now_s: float) -> list[Arrival]:
        """Put a complete volume into its run, or say why it has no place."""
        run = self._runs[stored.identity.series_uid]
        index = self._index(run, stored.identity.instance)
        exported = self._settings.n_dummy if self._settings.dummies_exported else 0
        reason = None
        if stored.identity.component != MAGNITUDE:
            reason = f"left out: component {stored.identity.component} of volume {index}, only magnitude is used"
        elif run.echo is not None and stored.identity.echo != run.echo:
            reason = f"left out: echo {stored.identity.echo} of volume {index}, echo {run.echo} is used"
        elif stored.identity.uid in self._uids:
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
        run.echo = run.echo if run.echo is not None else stored.identity.echo
        item: Volume | Skipped
        if stored.affine is None:
            unplaced = "affine: the file does not tell; set affine in [scanner]"
            item = Skipped(run=run.number, volume=index, path=path.name, reason=unplaced)
        elif stored.data.shape != run.shape:
            wrong = f"wrong shape: expected {run.shape} as in the volumes before, got {stored.data.shape}"
            item = Skipped(run=run.number, volume=index, path=path.name, reason=wrong)
        else:
            item = self._volume(path, stored, stored.affine, run, index)
        run.queue.offer(index, Arrival(path=path, item=item), now_s)
        return []

    def _volume(self, path: Path, stored: StoredVolume, affine: NDArray[np.float64], run: Run, index: int) -> Volume:
        problems = list(stored.problems)
        if stored.zero_tail > max(stored.data.shape[0], run.zero_tail):
            run.zero_tail = stored.zero_tail
            problems.append(f"the last {stored.zero_tail} values are zero: blank, or never written")
        told, expected = stored.t_r_s, self._settings.t_r_s
        if told is not None and expected is not None and not np.isclose(told, expected, rtol=1e-3):
            problems.append(f"repetition time: expected {expected} s by the settings, got {told} s")
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
            affine=frozen(affine),
            t_r_s=stored.t_r_s,
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

    def _given_up(self, run: Run, index: int) -> Arrival:
        reason = f"missing: volume {index} did not come within {self._settings.gap_timeout_s:g} s of a later one"
        return Arrival(path=None, item=Skipped(run=run.number, volume=index, path="", reason=reason))


def _zeros(path: Path, count: int) -> IncompleteFile:
    return IncompleteFile(path, "pixels", "values to the end", f"{count} zeros at the end")
