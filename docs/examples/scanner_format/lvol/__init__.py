"""LVOL, a made-up format: one volume a file, a line that names it, a line of JSON, then the values.

LVOL 1
{"series": "faces-1", "number": 1, "shape": [64, 64, 36], "affine": [[...], [...], [...], [...]], "t_r_s": 2.0}
<64 x 64 x 36 little-endian 16-bit integers, the first axis fastest>
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from rtdecode.acquire.readers import Format
from rtdecode.acquire.stored import Identity, Origin, Reading, StoredVolume, read_bytes, trailing_zeros
from rtdecode.errors import IncompleteFile, VolumeError

_MAGIC = b"LVOL 1"
_VALUES = np.dtype("<i2")
_LONGEST_HEADER = 4096


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The line of JSON; `affine` takes voxel indices to RAS+ mm."""

    series: str
    number: int
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    t_r_s: float


class LvolReader:
    """Reads LVOL files."""

    def read(self, path: Path) -> Reading:
        """Decode one file.

        Raises
        ------
        IncompleteFile
            If it ends before its last value: the watcher looks again later.
        VolumeError
            If it is no LVOL file, or its header is damaged.
        OSError
            If it cannot be read.
        """
        header, values = _parts(path, read_bytes(path))
        needed = math.prod(header.shape) * _VALUES.itemsize
        if len(values) < needed:
            raise IncompleteFile(path, "values", f"{needed} bytes", len(values))
        flat = np.frombuffer(values, _VALUES, math.prod(header.shape))
        volume = StoredVolume(
            identity=_identity(header),
            origin=Origin(format="lvol", names=(header.series,)),
            data=np.ascontiguousarray(flat.reshape(header.shape, order="F")),
            slope=1.0,
            intercept=0.0,
            affine=np.array(header.affine),
            t_r_s=header.t_r_s,
            slice_times_s=None,
            acquired_s=None,
            zero_tail=trailing_zeros(flat),
            unknown={"slice_times_s": "LVOL has no slice times", "acquired_s": "LVOL does not tell the time"},
        )
        return Reading(volumes=(volume,))

    def identify(self, path: Path) -> Identity:
        """Return which volume a file is; its header is enough."""
        return _identity(_parts(path, read_bytes(path))[0])


def _parts(path: Path, content: bytes) -> tuple[Header, bytes]:
    magic, _, rest = content.partition(b"\n")
    if magic != _MAGIC:
        raise VolumeError(path, "first line", _MAGIC.decode(), f"{len(magic)} other bytes")
    line, newline, values = rest.partition(b"\n")
    if not newline and len(line) < _LONGEST_HEADER:
        raise IncompleteFile(path, "header", "a line of JSON", f"{len(line)} bytes without an end of line")
    try:
        return msgspec.json.decode(line, type=Header), values
    except msgspec.DecodeError as error:
        raise VolumeError(path, "header", "a line of JSON with the fields of an LVOL header", error) from None


def _identity(header: Header) -> Identity:
    return Identity(
        series_uid=header.series,
        series_number=0,
        run=None,
        instance=header.number,
        uid=f"{header.series}#{header.number}",
        first=1,
    )


FORMAT = Format(suffixes=(".lvol",), reader=lambda _: LvolReader())
