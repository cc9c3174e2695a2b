"""One volume, or one slice of one, as a file holds it, before it has a place in a run."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import IncompleteFile, VolumeError

MAX_FILE_BYTES = 512 * 2**20
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = zlib.MAX_WBITS | 16
MAX_SLICES = 4096
MAGNITUDE = "M"
NO_PHILIPS_TIMES = "Philips writes no slice times"
SEVERAL_SCALES = "scaling differs between slices: each has its own, the values are told scaled"

_LAST_ECHO = 1 << 30
_BLANK_BYTES = 8
_CHUNK_BYTES = 1 << 16
_MOST_MEMBERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What says which volume a file is.

    Attributes
    ----------
    series_uid : str
        The series, or what stands for one.
    series_number : int
        Orders series that are first seen together; 0 if unknown.
    run : int or None
        Run number where the file name tells.
    instance : int
        Number of the volume in the series, as the file counts.
    uid : str
        Unique to the content: the SOP instance, or a digest.
    first : int or None
        Number of the first volume of a series, where the format has a rule for it.
    echo : int or None
        Number of the echo, from 1.
    component : str
        ``M`` magnitude, ``P`` phase, ``R`` real, ``I`` imaginary, or another name that the scanner gives.
    echo_ms : float or None
        Echo time, where only it may tell echoes apart.
    acquisition : int or None
        Another number of the file, which may count volumes where `instance` does not; see `echoes`.
    echoes : int or None
        Of the series, where the protocol tells.
    began_s : float or None
        Start of acquisition as the file states it, seconds since 1970: orders series that are first seen together.
    """

    series_uid: str
    series_number: int
    run: int | None
    instance: int
    uid: str
    first: int | None = None
    echo: int | None = None
    component: str = MAGNITUDE
    echo_ms: float | None = None
    acquisition: int | None = None
    echoes: int | None = None
    began_s: float | None = None

    @property
    def part(self) -> tuple[str, int, int | None, str, float | None]:
        """What the slices of one volume have in common."""
        return self.series_uid, self.instance, self.echo, self.component, self.echo_ms

    @property
    def order(self) -> tuple[int, str, int, int, str]:
        """Sort key: series, then volumes, then echoes (those without a number last), magnitude first."""
        rank = "" if self.component == MAGNITUDE else self.component
        return self.series_number, self.series_uid, self.instance, self.echo or _LAST_ECHO, rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made the image.

    Attributes
    ----------
    format : str
        Layout of the export, for example ``siemens-mosaic``.
    vendor, software : str or None
    image_type : tuple of str
        As the scanner labels the image.
    names : tuple of str
        Description of the series and name of its protocol. Free text: it may be anybody's name, and is not told.
    contrast : str or None
        As the scanner labels it.
    echo_planar : bool or None
        Whether the sequence is, where the file tells.
    volumes : int or None
        Of the whole series, as the file announces them.
    """

    format: str
    vendor: str | None = None
    software: str | None = None
    image_type: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    contrast: str | None = None
    echo_planar: bool | None = None
    volumes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredVolume:
    """A decoded volume.

    Attributes
    ----------
    identity : Identity
    origin : Origin
    data : array of shape (i, j, k), integer or float32
        The third axis counts slices.
    slope, intercept : float
        Value = ``data * slope + intercept``.
    scales : tuple of k pairs of float
        Slope and intercept of each slice, where they differ; empty where those of the volume hold.
    affine : array of shape (4, 4), float64, or None
        Voxel indices to RAS+ mm.
    t_r_s : float or None
    t_r_measured : bool
        `t_r_s` is not what the file tells but the distance of the acquisition times.
    slice_times_s : array of shape (k,) or None
        Seconds after the start of the volume.
    acquired_s : float or None
        Seconds since 1970 by the scanner's clock.
    began_s : float or None
        The same from a start that the file does not tell: only differences mean something.
    zero_tail : int
        Stored values at the end of the file that are zero and lie where the picture should be: a blank edge,
        or a file that was allocated first and is still being filled.
    notes : tuple of str
        What the reader noticed but could live with.
    unknown : dict of str to str
        Why a field is None.
    """

    identity: Identity
    origin: Origin
    data: NDArray[Any]
    slope: float
    intercept: float
    scales: tuple[tuple[float, float], ...] = ()
    affine: NDArray[np.float64] | None
    t_r_s: float | None
    t_r_measured: bool = False
    slice_times_s: NDArray[np.float64] | None
    acquired_s: float | None
    began_s: float | None = None
    zero_tail: int
    notes: tuple[str, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """Notes, and a reason for each field that is None."""
        several = (SEVERAL_SCALES,) if self.scales else ()
        absent = [name for name in ("affine", "t_r_s", "slice_times_s", "acquired_s") if getattr(self, name) is None]
        return (
            *self.notes,
            *several,
            *(f"{name}: {self.unknown.get(name, 'the file does not tell')}" for name in absent),
        )

    def rescaled(self) -> tuple[NDArray[Any], float, float]:
        """Return data, slope and intercept that hold for all slices: float32 where the slices' own differ."""
        if not self.scales:
            return self.data, self.slope, self.intercept
        slopes, intercepts = np.array(self.scales, np.float64).T
        return (self.data * slopes + intercepts).astype(np.float32), 1.0, 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredSlice:
    """A decoded slice that has to be stacked with others of its volume.

    Attributes
    ----------
    identity : Identity
        Of the volume; `uid` is that of the slice.
    origin : Origin
    data : array of shape (i, j), integer
    slope, intercept : float
    orientation : array of shape (6,), float64
        Directions of rows and columns, DICOM patient axes.
    position : array of shape (3,), float64
        Centre of the first voxel, mm, DICOM patient axes.
    spacing_mm : array of shape (2,), float64
        Between rows, between columns.
    between_mm : float or None
        Between slices, as stated.
    n_slices : int or None
        In the volume, as stated.
    number : int
        Orders the slices of a volume as the scanner counts them.
    t_r_s, acquired_s : float or None
    protocol_times_s : array of shape (n_slices,) or None
        Slice times that the protocol implies, in the order of `number`.
    timer : float or None
        When the slice was acquired by a clock of unknown unit and start (GE).
    zero_tail : int
    unknown : dict of str to str
    """

    identity: Identity
    origin: Origin
    data: NDArray[Any]
    slope: float
    intercept: float
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    between_mm: float | None
    n_slices: int | None
    number: int
    t_r_s: float | None
    acquired_s: float | None
    protocol_times_s: NDArray[np.float64] | None
    timer: float | None
    zero_tail: int
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What one look at a file gave.

    Attributes
    ----------
    volumes : tuple of StoredVolume
        In order; those asked to be left out are not there.
    slices : tuple of StoredSlice
        To be stacked with those of other files.
    growing : bool
        More volumes may come in the same file: look again when it changes.
    """

    volumes: tuple[StoredVolume, ...] = ()
    slices: tuple[StoredSlice, ...] = ()
    growing: bool = False


def differing(scales: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return slope and intercept of each slice for `StoredVolume.scales`: none where all are the same."""
    return tuple(scales) if len(set(scales)) > 1 else ()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; what is no regular file is not touched: a pipe would be waited for without end.

    Raises
    ------
    VolumeError
        If it is a pipe, socket, device or folder.
    OSError
        If it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise VolumeError(path, "kind", "a regular file", "a pipe, socket, device or folder")
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """Read a whole file of bounded size.

    Raises
    ------
    VolumeError
        If the file is larger than `MAX_FILE_BYTES`, or no regular one.
    IncompleteFile
        If it is empty.
    OSError
        If it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise VolumeError(path, "size", f"at most {MAX_FILE_BYTES} bytes", size)
        raw = file.read(size)
    if not raw:
        raise IncompleteFile(path, "size", "some bytes", 0)
    return raw


def inflate(path: Path, raw: bytes, limit: int = MAX_FILE_BYTES) -> tuple[bytes, bool]:
    """Decompress at most `limit` bytes, of all members, and say whether the last one ended, its checksum right.

    Raises
    ------
    IncompleteFile
        If the stream ends in zeros: allocated, not yet written.
    VolumeError
        If it is damaged.
    """
    view, at, size, members = memoryview(raw), 0, 0, 1
    parts: list[bytes] = []
    stream = zlib.decompressobj(GZIP_WBITS)
    try:
        while at < len(raw) and size <= limit:
            if stream.eof:
                if view[at : at + 2] != GZIP_MAGIC:  # padding
                    break
                members += 1
                if members > _MOST_MEMBERS:
                    raise VolumeError(path, "gzip", f"at most {_MOST_MEMBERS} members", "more")
                stream = zlib.decompressobj(GZIP_WBITS)
            chunk = view[at : at + _CHUNK_BYTES]
            parts.append(stream.decompress(chunk, limit + 1 - size))
            at += len(chunk) - len(stream.unconsumed_tail) - len(stream.unused_data)
            size += len(parts[-1])
    except zlib.error as error:
        if not any(raw[-8:]):
            raise IncompleteFile(path, "gzip", "an end marker", "zeros at the end") from None
        raise VolumeError(path, "gzip", "a readable stream", error) from None
    return b"".join(parts)[:limit], stream.eof and size <= limit


def ends_blank(path: Path) -> bool:
    """Say whether the last bytes of a file are zero."""
    try:
        with open_regular(path) as file:
            file.seek(-min(_BLANK_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return not any(file.read())
    except (OSError, VolumeError):
        return False


def trailing_zeros(values: NDArray[Any]) -> int:
    """Count the zeros at the end of a flat array."""
    nonzero = np.flatnonzero(values[::-1] != 0) if not values[-1:].any() else np.zeros(1, dtype=np.intp)
    return int(nonzero[0]) if nonzero.size else int(values.size)
