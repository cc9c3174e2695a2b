"""Three-dimensional NIfTI: one file is one volume, ``.nii`` or ``.nii.gz``."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from rtdecode.acquire.stored import MAX_FILE_BYTES, Identity, StoredVolume, read_bytes, trailing_zeros
from rtdecode.errors import IncompleteFile, VolumeError

SUFFIXES = (".nii", ".nii.gz")
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_LARGEST_HEADER = 544
_SMALLEST_OFFSET = 348
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_RUN = re.compile(r"(?:^|[_-])run-?(\d{1,6})(?=[_.-]|$)")
_TRAILING_NUMBER = re.compile(r"(\d{1,9})\D*$")
_GZIP_AND_ZLIB = 31


class NiftiReader:
    """Reads 3-D NIfTI files.

    Parameters
    ----------
    root : Path
        Watched folder: the folder below it that holds a file names its series.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: Path) -> StoredVolume:
        """Decode one file.

        Raises
        ------
        IncompleteFile
            If the file ends before its voxels or its gzip trailer do.
        VolumeError
            If it is not a readable 3-D NIfTI file.
        OSError
            If the file cannot be read.
        """
        raw = read_bytes(path)
        start = _inflate(path, raw, _LARGEST_HEADER)[0] if path.name.endswith(".gz") else raw[:_LARGEST_HEADER]
        header = _header(path, start)
        shape, dtype = _shape(path, header), _dtype(path, header)
        offset = int(header["vox_offset"])
        needed = offset + int(np.prod(shape)) * dtype.itemsize
        if offset < _SMALLEST_OFFSET or needed > MAX_FILE_BYTES:
            raise VolumeError(path, "header", f"voxels within {MAX_FILE_BYTES} bytes", f"{needed} bytes")
        if path.name.endswith(".gz"):
            content, ended = _inflate(path, raw, needed)
            if not ended:
                raise IncompleteFile(path, "gzip", "an end marker", f"end of file at {len(raw)} bytes")
        else:
            content = raw
        if len(content) < needed:
            raise IncompleteFile(path, "size", f"{needed} bytes", len(content))
        flat = np.frombuffer(content, dtype=dtype, count=int(np.prod(shape)), offset=offset)
        slope, intercept = header.get_slope_inter()
        return StoredVolume(
            identity=self._identity(path, raw),
            data=_native(flat).reshape(shape, order="F").copy(order="C"),
            slope=1.0 if slope is None else float(slope),
            intercept=0.0 if intercept is None else float(intercept),
            affine=np.asarray(header.get_best_affine(), dtype=np.float64),
            t_r_s=_t_r_s(header),
            slice_times_s=_slice_times(header, shape),
            acquired_s=None,
            zero_tail=0 if path.name.endswith(".gz") else trailing_zeros(flat),
        )

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is by its name, content unseen; None without a number in it."""
        try:
            return self._identity(path, b"")
        except VolumeError:
            return None

    def _identity(self, path: Path, raw: bytes) -> Identity:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        number = _TRAILING_NUMBER.search(stem)
        if number is None:
            raise VolumeError(path, "name", "a volume number at the end", path.name)
        folder = path.parent.relative_to(self._root).as_posix()
        run = _RUN.search(stem) or _RUN.search(path.parent.name if folder != "." else "")
        return Identity(
            series_uid=f"{folder}/run-{run[1]}" if run else f"{folder}/{stem[: number.start()]}",
            series_number=int(run[1]) if run else 0,
            run=int(run[1]) if run else None,
            instance=int(number[1]),
            uid=hashlib.blake2b(raw, digest_size=16).hexdigest(),
        )


def _inflate(path: Path, raw: bytes, limit: int) -> tuple[bytes, bool]:
    """Decompress at most `limit` bytes and say whether the stream ended there, its checksum right."""
    stream = zlib.decompressobj(_GZIP_AND_ZLIB)
    try:
        content = stream.decompress(raw, limit)
        if not stream.eof and len(content) == limit:
            stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        if not any(raw[-8:]):
            raise IncompleteFile(path, "gzip", "an end marker", "zeros at the end") from None
        raise VolumeError(path, "gzip", "a readable stream", error) from None
    return content, stream.eof


def _header(path: Path, start: bytes) -> Any:
    if len(start) < 348 or not any(start):
        raise IncompleteFile(path, "header", "at least 348 bytes", f"{len(start)} bytes, all of them zero or too few")
    size = int.from_bytes(start[:4], "little")
    size = size if size in _HEADERS else int.from_bytes(start[:4], "big")
    if size not in _HEADERS:
        raise VolumeError(path, "header", "NIfTI-1 or NIfTI-2", f"sizeof_hdr {size}")
    if len(start) < size:
        raise IncompleteFile(path, "header", f"{size} bytes", len(start))
    try:
        return _HEADERS[size].from_fileobj(io.BytesIO(start[:size]))
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise VolumeError(path, "header", "a valid NIfTI header", error) from None


def _shape(path: Path, header: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or any(n < 1 for n in shape):
        raise VolumeError(path, "dim", "one three-dimensional volume", shape)
    return shape[0], shape[1], shape[2]


def _dtype(path: Path, header: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(path, "datatype", "integers or floating point", dtype)
    return dtype


def _native(flat: NDArray[Any]) -> NDArray[Any]:
    return flat.astype(np.float32 if flat.dtype.kind == "f" else flat.dtype.newbyteorder("="), copy=False)


def _t_r_s(header: Any) -> float | None:
    """Repetition time, if the header has a time axis or at least a unit of time; else its field means nothing."""
    unit = _SECONDS.get(header.get_xyzt_units()[1], 1.0 if len(header.get_data_shape()) > 3 else None)
    period = float(header["pixdim"][4])
    return period * unit if unit is not None and np.isfinite(period) and period > 0 else None


def _slice_times(header: Any, shape: tuple[int, int, int]) -> NDArray[np.float64] | None:
    unit = _SECONDS.get(header.get_xyzt_units()[1], 1.0)
    try:
        times = header.get_slice_times()
    except HeaderDataError:
        return None
    if len(times) != shape[2] or any(t is None for t in times):
        return None
    return np.array(times, dtype=np.float64) * unit
