"""One seam for every format: a path in, the volumes and slices of that file out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import nifti, parrec
from rtdecode.acquire.dicom import DicomReader
from rtdecode.acquire.echoes import Echoes
from rtdecode.acquire.stored import Identity, Reading, StoredSlice, StoredVolume
from rtdecode.errors import VolumeError

GROUP = "rtdecode.readers"
"""Entry points: the object is a `Format`."""


class Reader(Protocol):
    """What reads the files of one format."""

    def read(self, path: Path) -> Reading:
        """Decode all that is in one file, or raise `VolumeError` or `OSError`."""
        ...

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is, as far as it can be told from a damaged one."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format that an installed package reads.

    Attributes
    ----------
    suffixes : tuple of str
        Ends of the names of its files, in lower case. NIfTI and PAR/REC files are never given to it.
    reader : callable
        Is given the watched folder; makes what reads the files.
    """

    suffixes: tuple[str, ...]
    reader: Callable[[Path], Reader]


@functools.cache
def installed() -> tuple[Format, ...]:
    """Find the formats of the installed packages, by the names of their entry points."""
    return tuple(point.load() for point in sorted(entry_points(group=GROUP), key=lambda point: point.name))


class Readers:
    """Reads any file that may hold volumes.

    Parameters
    ----------
    root : Path
        Watched folder; formats without identities of their own name series by where a file lies below it.
    t_r_s : float or None
        Repetition time of files that do not tell.
    affine : array of shape (4, 4) or None
        Voxel indices to RAS+ mm of files that do not tell.

    Attributes
    ----------
    looks : int
        Number of files looked at so far.
    """

    def __init__(self, root: Path, *, t_r_s: float | None = None, affine: NDArray[np.float64] | None = None) -> None:
        self._dicom = DicomReader()
        self._nifti = nifti.NiftiReader(root)
        self._parrec = parrec.ParRecReader(root)
        self._others = [(form.suffixes, form.reader(root)) for form in installed()]
        self._echoes = Echoes()
        self._t_r_s = t_r_s
        self._affine = affine
        self.looks = 0

    def read(self, path: Path, skip: int = 0) -> Reading:
        """Decode one file.

        Parameters
        ----------
        path : Path
        skip : int
            Volumes at the start of a growing file that are not wanted again.

        Raises
        ------
        IncompleteFile
            If the file is not complete yet.
        VolumeError
            If nothing in it can be used.
        OSError
            If it cannot be read.
        """
        self.looks += 1
        with seam(path):
            reading = self._nifti.read(path, skip) if is_nifti(path) else _after(self._for(path).read(path), skip)
        for identity in [v.identity for v in reading.volumes] + [s.identity for s in reading.slices]:
            self._echoes.learn(identity)
        if self._t_r_s is None and self._affine is None:
            return reading
        return Reading(
            volumes=tuple(self._completed(volume) for volume in reading.volumes),
            slices=tuple(self._timed(stored) for stored in reading.slices),
            growing=reading.growing,
        )

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is, as far as it can be told from a damaged one."""
        self.looks += 1
        try:
            with seam(path):
                found = self._nifti.identify(path) if is_nifti(path) else self._for(path).identify(path)
        except (VolumeError, OSError):
            return None
        return None if found is None else self._echoes.placed(found)

    def peek(self, path: Path) -> Identity | None:
        """Return which series and moment a file is of by its first bytes, where these tell."""
        if is_nifti(path) or self._for(path) is not self._dicom:
            return None
        self.looks += 1
        try:
            with seam(path):
                return self._dicom.peek(path)
        except (VolumeError, OSError):
            return None

    def placed(self, stored: StoredVolume) -> StoredVolume:
        """Return a volume with the echo and number that all files of its series so far give it."""
        identity = self._echoes.placed(stored.identity)
        return stored if identity is stored.identity else dataclasses.replace(stored, identity=identity)

    def _for(self, path: Path) -> Reader:
        name = path.name.lower()
        if name.endswith(parrec.SUFFIX):
            return self._parrec
        return next((reader for suffixes, reader in self._others if name.endswith(suffixes)), self._dicom)

    def _completed(self, volume: StoredVolume) -> StoredVolume:
        return dataclasses.replace(
            volume,
            t_r_s=volume.t_r_s if volume.t_r_s is not None else self._t_r_s,
            affine=volume.affine if volume.affine is not None else self._affine,
        )

    def _timed(self, stored: StoredSlice) -> StoredSlice:
        return dataclasses.replace(stored, t_r_s=stored.t_r_s if stored.t_r_s is not None else self._t_r_s)


def _after(reading: Reading, skip: int) -> Reading:
    """Leave out the volumes that were taken before."""
    return dataclasses.replace(reading, volumes=reading.volumes[skip:])


@contextmanager
def seam(path: Path) -> Iterator[None]:
    """Let no exception but those that a reader promises leave it: anybody's file may hold anything.

    Raises
    ------
    VolumeError
        In place of whatever else the file at `path` leads to.
    """
    try:
        yield
    except (VolumeError, OSError):
        raise
    except Exception as error:
        raise VolumeError(path, "content", "a file of its format", type(error).__name__) from error


def is_nifti(path: Path) -> bool:
    """Whether a name is that of a NIfTI file."""
    return path.name.endswith(nifti.SUFFIXES)


def state(path: Path) -> tuple[int, int]:
    """Size and time of change of a file and of what belongs to it; changes while either is written."""
    files = [path, parrec.companion(path)] if path.suffix.lower() == parrec.SUFFIX else [path]
    size, changed = -1, 0
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        size, changed = size + 1 + status.st_size, max(changed, status.st_mtime_ns)
    return size, changed
