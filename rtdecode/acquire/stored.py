"""One volume as a file holds it, before it has a place in a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import IncompleteFile, VolumeError

MAX_FILE_BYTES = 512 * 2**20

_BLANK_BYTES = 8


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
    """

    series_uid: str
    series_number: int
    run: int | None
    instance: int
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredVolume:
    """A decoded file.

    Attributes
    ----------
    identity : Identity
    data : array of shape (i, j, k), integer or float32
    slope, intercept : float
        Value = ``data * slope + intercept``.
    affine : array of shape (4, 4), float64
        Voxel indices to RAS+ mm.
    t_r_s : float or None
    slice_times_s : array of shape (k,) or None
        Seconds after the start of the volume.
    acquired_s : float or None
        Seconds since 1970 by the scanner's clock.
    zero_tail : int
        Stored values at the end of the file that are zero and lie where the picture should be: a blank edge,
        or a file that was allocated first and is still being filled.
    """

    identity: Identity
    data: NDArray[Any]
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    t_r_s: float | None
    slice_times_s: NDArray[np.float64] | None
    acquired_s: float | None
    zero_tail: int


def read_bytes(path: Path) -> bytes:
    """Read a whole file of bounded size.

    Raises
    ------
    VolumeError
        If the file is larger than `MAX_FILE_BYTES`.
    IncompleteFile
        If it is empty.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise VolumeError(path, "size", f"at most {MAX_FILE_BYTES} bytes", "more")
    if not raw:
        raise IncompleteFile(path, "size", "some bytes", 0)
    return raw


def ends_blank(path: Path) -> bool:
    """Say whether the last bytes of a file are zero."""
    try:
        with path.open("rb") as file:
            file.seek(-min(_BLANK_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return not any(file.read())
    except OSError:
        return False


def trailing_zeros(values: NDArray[Any]) -> int:
    """Count the zeros at the end of a flat array."""
    nonzero = np.flatnonzero(values[::-1] != 0) if not values[-1:].any() else np.zeros(1, dtype=np.intp)
    return int(nonzero[0]) if nonzero.size else int(values.size)
