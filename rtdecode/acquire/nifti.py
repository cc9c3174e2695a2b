"""NIfTI, ``.nii`` or ``.nii.gz``: a volume per file, or a whole series in one, which may be growing."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from rtdecode.acquire import geometry, timing
from rtdecode.acquire.stored import (
    MAX_FILE_BYTES,
    Identity,
    Origin,
    Reading,
    StoredVolume,
    inflate,
    open_regular,
    read_bytes,
    trailing_zeros,
)
from rtdecode.errors import IncompleteFile, VolumeError, named

SUFFIXES = (".nii", ".nii.gz")
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_LARGEST_HEADER = 544
_SMALLEST_OFFSET = 348
SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_RUN = re.compile(r"(?:^|[_-])run-?(\d{1,6})(?=[_.-]|$)")
_TRAILING_NUMBER = re.compile(r"(\d{1,9})\D*$")
_LARGEST_READ = 256 * 2**20


class NiftiReader:
    """Reads NIfTI files of one volume, or of a series, which may still be growing.

    Parameters
    ----------
    root : Path
        Watched folder: the folder below it that holds a file names its series.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: Path, skip: int = 0) -> Reading:
        """Decode one file.

        Parameters
        ----------
        path : Path
        skip : int
            Volumes at the start of a series that are not wanted again.

        Raises
        ------
        IncompleteFile
            If the file ends before its first voxels or its gzip trailer do.
        VolumeError
            If it is not a readable NIfTI file of three or four dimensions.
        OSError
            If the file cannot be read.
        """
        if path.name.endswith(".gz"):
            raw = read_bytes(path)
            header = _header(path, inflate(path, raw, _LARGEST_HEADER)[0])
            layout = _layout(path, header)
            needed = layout.offset + layout.nbytes * layout.volumes
            if needed > MAX_FILE_BYTES:
                raise VolumeError(path, "header", f"voxels within {MAX_FILE_BYTES} bytes", f"{needed} bytes")
            content, ended = inflate(path, raw, needed)
            if not ended:
                raise IncompleteFile(path, "gzip", "an end marker", f"end of file at {len(raw)} bytes")
            content = content[layout.offset + skip * layout.nbytes :]
        else:
            with open_regular(path) as file:
                header = _header(path, file.read(_LARGEST_HEADER))
                layout = _layout(path, header)
                file.seek(layout.offset + skip * layout.nbytes)
                content = file.read(min(max(layout.volumes - skip, 0), _at_once(layout)) * layout.nbytes)
        found = min(len(content) // layout.nbytes, max(layout.volumes - skip, 0))
        if layout.volumes == 1 or (found == 0 and skip == 0):
            if len(content) < layout.nbytes:
                raise IncompleteFile(path, "size", f"{layout.nbytes} bytes of voxels", len(content))
            found = 1
        flat = np.frombuffer(content, layout.dtype, count=found * layout.nbytes // layout.dtype.itemsize)
        zeros = 0 if path.name.endswith(".gz") else trailing_zeros(flat)
        volumes = []
        for turn, values in enumerate(flat.reshape(found, layout.nbytes // layout.dtype.itemsize)):
            behind = (found - 1 - turn) * values.size
            tail = min(max(zeros - behind, 0), values.size)
            volumes.append(self._volume(path, header, layout, values, skip + turn, tail))
        return Reading(volumes=tuple(volumes), growing=layout.volumes > 1 and not path.name.endswith(".gz"))

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is by its name, content unseen; None without a number in it."""
        try:
            return self._identity(path, b"")
        except VolumeError:
            return None

    def _volume(
        self, path: Path, header: Any, layout: _Layout, values: NDArray[Any], turn: int, zero_tail: int
    ) -> StoredVolume:
        slope, intercept = scaling(path, header)
        several = layout.volumes > 1
        identity = self._series(path, turn) if several else self._identity(path, values.tobytes())
        t_r_s, note = repetition_time(header)
        return StoredVolume(
            identity=identity,
            origin=Origin(format="nifti-4d" if several else "nifti", names=(_name(path, several),)),
            data=_native(values).reshape(layout.shape, order="F").copy(order="C"),
            slope=slope,
            intercept=intercept,
            affine=_affine(path, header),
            t_r_s=t_r_s,
            slice_times_s=slice_times(header, layout.shape),
            acquired_s=None,
            zero_tail=zero_tail,
            notes=(note,) if note and t_r_s is not None else (),
            unknown={
                "t_r_s": note or "the header has no time axis, or no unit for it",
                "slice_times_s": "the header has no slice order",
                "acquired_s": "NIfTI does not tell",
            },
        )

    def _folder(self, path: Path) -> str:
        folder = path.parent.relative_to(self._root) if path.is_relative_to(self._root) else path.parent
        return named(folder.as_posix())

    def _series(self, path: Path, turn: int) -> Identity:
        """Name a volume of a file that holds a series."""
        stem, folder = _stem(path), self._folder(path)
        run = _RUN.search(stem) or _RUN.search(path.parent.name if folder != "." else "")
        return Identity(
            series_uid=f"{folder}/{stem}",
            series_number=int(run[1]) if run else 0,
            run=int(run[1]) if run else None,
            instance=turn + 1,
            uid=f"{folder}/{stem}#{turn}",
            first=1,
        )

    def _identity(self, path: Path, raw: bytes) -> Identity:
        stem, folder = _stem(path), self._folder(path)
        number = _TRAILING_NUMBER.search(stem)
        if number is None:
            raise VolumeError(path, "name", "a volume number at the end", named(path.name))
        run = _RUN.search(stem) or _RUN.search(path.parent.name if folder != "." else "")
        return Identity(
            series_uid=f"{folder}/run-{run[1]}" if run else f"{folder}/{stem[: number.start()]}",
            series_number=int(run[1]) if run else 0,
            run=int(run[1]) if run else None,
            instance=int(number[1]),
            uid=hashlib.blake2b(raw, digest_size=16).hexdigest(),
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the voxels of each volume lie."""

    shape: tuple[int, int, int]
    volumes: int
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def _stem(path: Path) -> str:
    return named(path.name.removesuffix(".gz").removesuffix(".nii"))


def _name(path: Path, several: bool) -> str:
    """Return the name of the series: that of the file, without the number of the volume."""
    stem = _stem(path)
    return stem if several else _TRAILING_NUMBER.sub("", stem).rstrip("_-. ")


def _at_once(layout: _Layout) -> int:
    """Volumes to read in one go."""
    return max(_LARGEST_READ // layout.nbytes, 1)


def _layout(path: Path, header: Any) -> _Layout:
    shape = tuple(int(n) for n in header.get_data_shape())
    if not 3 <= len(shape) <= 7 or any(n < 1 for n in shape) or any(n != 1 for n in shape[4:]):
        raise VolumeError(path, "dim", "three or four dimensions", shape)
    offset = float(header["vox_offset"])
    if not _SMALLEST_OFFSET <= offset <= MAX_FILE_BYTES:
        raise VolumeError(path, "vox_offset", f"{_SMALLEST_OFFSET} to {MAX_FILE_BYTES}", f"{offset:g}")
    found = _Layout((shape[0], shape[1], shape[2]), (*shape, 1)[3], _dtype(path, header), int(offset))
    if found.offset + found.nbytes > MAX_FILE_BYTES:
        raise VolumeError(path, "header", f"a volume within {MAX_FILE_BYTES} bytes", f"{found.nbytes} bytes")
    return found


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(path, "affine", "a quaternion of unit length", error) from None
    return geometry.independent(path, affine)


def scaling(path: Path, header: Any) -> tuple[float, float]:
    """Slope and intercept: value = stored * slope + intercept.

    Raises
    ------
    VolumeError
        If they are no numbers.
    """
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise VolumeError(path, "scl_slope, scl_inter", "finite numbers", error) from None
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


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
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise VolumeError(path, "header", "a valid NIfTI header", error) from None


def _dtype(path: Path, header: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(path, "datatype", "integers or floating point", dtype)
    return dtype


def _native(flat: NDArray[Any]) -> NDArray[Any]:
    return flat.astype(np.float32 if flat.dtype.kind == "f" else flat.dtype.newbyteorder("="), copy=False)


def _unit_s(header: Any) -> float | None:
    """Return the unit of time in seconds; None if the header does not tell."""
    try:
        return SECONDS.get(header.get_xyzt_units()[1])
    except KeyError:  # no code of the format
        return None


def repetition_time(header: Any) -> tuple[float | None, str]:
    """Return repetition time in seconds and what was noticed; None without a time axis or at least a unit of time."""
    unit = _unit_s(header) or (1.0 if len(header.get_data_shape()) > 3 else None)
    told = float(header["pixdim"][4])
    if unit is None or not np.isfinite(told) or told <= 0:
        return None, ""
    return timing.repetition_time(told, header.get_data_shape()[2], unit, tuple(SECONDS.values()))


def slice_times(header: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return when each slice was acquired, seconds after the start of its volume; None if the header does not tell."""
    unit = _unit_s(header) or 1.0
    try:
        times = header.get_slice_times()
        if not header.get_slice_duration() > 0:
            return None
    except (HeaderDataError, ValueError):
        return None
    if len(times) != shape[2] or any(t is None for t in times):
        return None
    return np.array(times, dtype=np.float64) * unit
