"""Watches the scanner's export folder.

A directory scan is the truth; native file events only hasten the next one, since they are lost on network
mounts and on overflow. `Intake` reads the files, `Runs` gives volumes their places.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from rtdecode.acquire import folder
from rtdecode.acquire.intake import MOST_FILES, Intake
from rtdecode.acquire.readers import Readers
from rtdecode.acquire.runs import Runs
from rtdecode.acquire.series import Selection
from rtdecode.acquire.source import Arrival
from rtdecode.clock import Clock
from rtdecode.errors import named
from rtdecode.records import KnownRun
from rtdecode.settings import ScannerSettings

logger = logging.getLogger(__name__)


class FolderWatcher:
    """A `Source` over a folder that a scanner writes to, sub-folders included.

    The first series seen is run 1, the next one run 2 (several first seen together: by time of acquisition, else by
    series number); NIfTI files that name their run (``run-03`` in the name or the folder) keep that number. A series
    that is started again is a new run. Index 0 is the first volume after ``n_dummy``; exported dummies are reported as
    `Skipped` without an index. Volumes of a run wait until all earlier runs have nothing left behind a gap, and the
    next run as long for the end of one whose number of volumes is known. A file may hold a slice, a volume or many, and
    more may come in a file that grows. Of several echoes one is used, of complex images the magnitude; series that are
    no BOLD series, or have another shape than the first run, are reported once and make no run, unless the settings
    choose otherwise.

    Parameters
    ----------
    settings : ScannerSettings
    session : str
        Session identifier for the stamps.
    clock : Clock
        Without file events, `wait` sleeps on it.
    known : sequence of KnownRun
        Runs of an interrupted session: they keep their numbers, and what had been dealt with is passed over.
    """

    def __init__(
        self, settings: ScannerSettings, session: str, clock: Clock, *, known: Sequence[KnownRun] = ()
    ) -> None:
        self._export_dir = settings.export_dir
        self._clock = clock
        affine = None if settings.affine is None else np.array([*settings.affine, (0.0, 0.0, 0.0, 1.0)])
        self._readers = Readers(settings.export_dir, t_r_s=settings.t_r_s, affine=affine)
        selection = Selection(settings.series, settings.echo)
        self._intake = Intake(self._readers, selection, settings.gap_timeout_s)
        self._runs = Runs(settings, session, clock, selection, known)
        self._backlog = False
        self._wake = threading.Event()
        self._problem: str | None = None
        self._unlisted: set[str] = set()
        remote = settings.watch == "auto" and folder.is_remote(settings.export_dir)
        self._native = settings.watch != "polling" and not remote
        self._observer = folder.observe(settings.export_dir, self._wake) if self._native else None

    @property
    def problem(self) -> str | None:
        """Why the folder could not be listed at the last poll, or None."""
        return self._problem

    @property
    def looks(self) -> int:
        """Number of files looked at so far."""
        return self._readers.looks

    def poll(self) -> list[Arrival]:
        """Scan the folder, once more if there is a new series, and return what may go on, in index order per run."""
        self._wake.clear()
        out = self._look()
        if self._runs.met_new:
            out += self._look()
        return out

    def _look(self) -> list[Arrival]:
        now_s = self._clock.monotonic()
        names = self._intake.pending(self._names())
        self._backlog = any(self._intake.is_new(name) for name in names[MOST_FILES:])
        findings = self._intake.look(names[:MOST_FILES], now_s)
        out = self._runs.take(findings, self._intake.begun, now_s)
        self._backlog |= self._runs.met_new
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

    def _names(self) -> list[str]:
        """Paths of all files that may hold a volume; none while the folder cannot be listed."""
        try:
            names = list(folder.files(str(self._export_dir), self._pass_over))
        except OSError as error:
            if self._problem is None:
                logger.warning("cannot list the export folder: %s", error)
            self._problem = str(error)
            return []
        self._problem = None
        return names

    def _pass_over(self, error: OSError) -> None:
        """Say once that a sub-folder cannot be listed."""
        place = named(str(error.filename))
        if place not in self._unlisted:
            self._unlisted.add(place)
            logger.warning("cannot list %s, what is in it is not read: %s", place, error.strerror)
