"""Siemens mosaic DICOM: one file is one volume.

Only raw element values are looked at, so a damaged header cannot make pydicom's converters warn or fail
half-way.
"""

from __future__ import annotations

import datetime
import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from rtdecode.acquire import csa
from rtdecode.acquire.stored import Identity, StoredVolume, read_bytes, trailing_zeros
from rtdecode.errors import IncompleteFile, VolumeError

_PREAMBLE = 128
_UNCOMPRESSED = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CSA_WANTED = ("NumberOfImagesInMosaic", "SliceNormalVector", "MosaicRefAcqTimes")
_CACHED_SERIES = 16

_PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
)

_PIXEL_DATA = 0x7FE00010
_SERIES_UID = 0x0020000E
_SERIES_NUMBER = 0x00200011
_SOP_INSTANCE_UID = 0x00080018
_INSTANCE_NUMBER = 0x00200013
_GEOMETRY = (0x00200032, 0x00200037, 0x00280030, 0x00180088, 0x00180050, 0x00280010, 0x00280011)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """What is the same for all volumes of a series: tile layout, affine, slice times."""

    shape: tuple[int, int, int]
    tiles: int
    affine: NDArray[np.float64]
    slice_times_s: NDArray[np.float64] | None


class DicomReader:
    """Reads mosaics; remembers the geometry of the latest series."""

    def __init__(self) -> None:
        self._geometry: dict[tuple[bytes, ...], _Geometry] = {}

    def read(self, path: Path) -> StoredVolume:
        """Decode one file.

        Raises
        ------
        IncompleteFile
            If the file ends before its pixels do, or its header cannot be parsed (yet).
        VolumeError
            If it is not a Siemens mosaic with uncompressed pixels.
        OSError
            If the file cannot be read.
        """
        raw = read_bytes(path)
        header = _Header(path, raw)
        pixels = header.pixels()
        key = (header.raw(_SERIES_UID), *(header.raw(tag) for tag in _GEOMETRY))
        geometry = self._geometry.get(key)
        if geometry is None:
            geometry = _geometry(header)
            if len(self._geometry) >= _CACHED_SERIES:
                self._geometry.pop(next(iter(self._geometry)))
            self._geometry[key] = geometry
        return _assemble(header, geometry, pixels)

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is, as far as it can be told from a damaged one."""
        try:
            return _Header(path, read_bytes(path)).identity()
        except (VolumeError, OSError):
            return None


class _Header:
    """Raw elements of one file, with errors that name the file."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path = path
        self.size = len(raw)
        if len(raw) < _PREAMBLE + 4 or not any(raw[: _PREAMBLE + 4]):
            raise IncompleteFile(path, "preamble", "132 bytes", f"{len(raw)} bytes, all of them zero or too few")
        if raw[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
            raise VolumeError(path, "preamble", "DICM at byte 128", repr(raw[_PREAMBLE : _PREAMBLE + 4]))
        if _DEFLATED in raw[:1024]:
            raise VolumeError(path, "transfer syntax", "uncompressed pixels", "deflated")
        try:
            self._dataset: FileDataset = pydicom.dcmread(io.BytesIO(raw))
        except _PARSE_ERRORS as error:  # damaged or not yet written: only time can tell
            raise IncompleteFile(path, "header", "readable DICOM", f"{error} in {len(raw)} bytes") from None

    def _item(self, tag: int) -> object:
        try:
            return self._dataset.get_item(tag)
        except _PARSE_ERRORS as error:  # as above
            raise IncompleteFile(self.path, "header", "readable DICOM", f"{error} in {self.size} bytes") from None

    def raw(self, tag: int) -> bytes:
        """Value of an element as stored; empty if absent."""
        value = getattr(self._item(tag), "value", b"")
        return value if isinstance(value, bytes) else b""

    def text(self, tag: int) -> str:
        return self.raw(tag).decode("latin-1").strip(" \0")

    def numbers(self, tag: int, count: int, name: str) -> NDArray[np.float64]:
        text = self.text(tag)
        try:
            values = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            raise VolumeError(self.path, name, f"{count} numbers", repr(text)) from None
        if values.size != count or not np.isfinite(values).all():
            raise VolumeError(self.path, name, f"{count} finite numbers", repr(text))
        return values

    def number(self, tag: int, default: float | None, name: str) -> float | None:
        return float(self.numbers(tag, 1, name)[0]) if self.text(tag) else default

    def short(self, tag: int, name: str) -> int:
        value = self.raw(tag)
        if len(value) != 2:
            raise VolumeError(self.path, name, "one 16-bit number", repr(value))
        return int.from_bytes(value, "big" if self.byte_order() == ">" else "little")

    def byte_order(self) -> str:
        syntax = str(self._dataset.file_meta.get("TransferSyntaxUID", ""))
        order = _UNCOMPRESSED.get(syntax)
        if order is None:
            raise VolumeError(self.path, "transfer syntax", "uncompressed pixels", syntax or "none")
        return order

    def identity(self) -> Identity:
        series, uid = self.text(_SERIES_UID), self.text(_SOP_INSTANCE_UID)
        if not series or not uid:
            raise VolumeError(self.path, "identity", "a series and an instance UID", "none")
        number = self.number(_SERIES_NUMBER, 0.0, "SeriesNumber")
        return Identity(
            series_uid=series,
            series_number=int(number or 0),
            run=None,
            instance=int(self.numbers(_INSTANCE_NUMBER, 1, "InstanceNumber")[0]),
            uid=uid,
        )

    def pixels(self) -> NDArray[np.uint16] | NDArray[np.int16]:
        """Return the stored values of the whole mosaic, flat.

        Raises
        ------
        IncompleteFile
            If the file ends before its pixels do.
        VolumeError
            If the pixels are not 16-bit, uncompressed and as many as rows x columns.
        """
        item = self._item(_PIXEL_DATA)
        if item is None:
            raise IncompleteFile(self.path, "PixelData", "present", f"end of file at {self.size} bytes")
        order = self.byte_order()
        if (bits := self.short(0x00280100, "BitsAllocated")) != 16:
            raise VolumeError(self.path, "BitsAllocated", 16, bits)
        expected = 2 * self.short(0x00280010, "Rows") * self.short(0x00280011, "Columns")
        announced = getattr(item, "length", 0)
        if announced not in (expected, expected + expected % 2) or expected == 0:
            raise VolumeError(self.path, "PixelData", f"rows x columns x 2 = {expected} bytes", announced)
        value = self.raw(_PIXEL_DATA)
        if len(value) < expected:
            raise IncompleteFile(self.path, "PixelData", f"{expected} bytes", len(value))
        kind = "i2" if self.short(0x00280103, "PixelRepresentation") == 1 else "u2"
        stored = np.frombuffer(value, dtype=f"{order}{kind}", count=expected // 2)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)

    def acquired_s(self) -> float | None:
        """Start of acquisition in seconds since 1970; without an offset in the file, local time is meant."""
        for date, clock in (
            (self.text(0x00080022), self.text(0x00080032)),
            (self.text(0x0008002A)[:8], self.text(0x0008002A)[8:26]),
        ):
            for form in ("%Y%m%d%H%M%S.%f", "%Y%m%d%H%M%S"):
                try:
                    return datetime.datetime.strptime(date + clock, form).timestamp()
                except (ValueError, OverflowError, OSError):
                    continue
        return None


def _geometry(header: _Header) -> _Geometry:
    mosaic = _csa(header)
    try:
        n_slices = int(mosaic["NumberOfImagesInMosaic"][0])
    except (KeyError, IndexError, ValueError):
        raise VolumeError(
            header.path,
            "NumberOfImagesInMosaic",
            "a Siemens mosaic",
            f"none (ImageType {header.text(0x00080008)})",
        ) from None
    tiles = int(np.ceil(np.sqrt(max(n_slices, 0))))
    rows, columns = header.short(0x00280010, "Rows"), header.short(0x00280011, "Columns")
    if tiles == 0 or rows % tiles or columns % tiles:
        raise VolumeError(header.path, "mosaic", f"{rows} x {columns} pixels to hold {n_slices} tiles", "a remainder")
    shape = columns // tiles, rows // tiles, n_slices
    return _Geometry(shape, tiles, _affine(header, mosaic, shape, tiles), _slice_times(header, mosaic, n_slices))


def _csa(header: _Header) -> dict[str, list[str]]:
    for block in range(0x10, 0x100):
        if header.text(0x00290000 + block) == "SIEMENS CSA HEADER":
            try:
                return csa.parse(header.raw(0x00290000 + (block << 8) + 0x10), _CSA_WANTED)
            except ValueError as error:
                raise VolumeError(header.path, "CSA header", "a readable one", error) from None
    raise VolumeError(header.path, "CSA header", "a Siemens mosaic with its private header", "none")


def _affine(
    header: _Header, mosaic: dict[str, list[str]], shape: tuple[int, int, int], tiles: int
) -> NDArray[np.float64]:
    """Return the affine; the position in the file is that of the whole mosaic, not of its first tile."""
    orientation = header.numbers(0x00200037, 6, "ImageOrientationPatient")
    spacing = header.numbers(0x00280030, 2, "PixelSpacing")
    between = header.number(0x00180088, None, "SpacingBetweenSlices") or header.number(
        0x00180050, None, "SliceThickness"
    )
    if not between:
        raise VolumeError(header.path, "SpacingBetweenSlices", "a distance in mm, or SliceThickness", between)
    lps = np.eye(4)
    lps[:3, 0] = orientation[:3] * spacing[1]
    lps[:3, 1] = orientation[3:] * spacing[0]
    normal = np.cross(orientation[:3], orientation[3:])
    try:
        stated = np.array([float(part) for part in mosaic.get("SliceNormalVector", [])[:3]])
    except ValueError:
        stated = np.empty(0)
    if stated.size == 3 and normal @ stated < 0:
        normal = -normal
    lps[:3, 2] = normal * between
    corner = header.numbers(0x00200032, 3, "ImagePositionPatient")
    lps[:3, 3] = corner + (tiles - 1) / 2 * (lps[:3, 0] * shape[0] + lps[:3, 1] * shape[1])
    affine: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    if abs(np.linalg.det(affine)) < 1e-6:
        raise VolumeError(header.path, "geometry", "three independent axes", affine[:3, :3].tolist())
    return affine


def _slice_times(header: _Header, mosaic: dict[str, list[str]], n_slices: int) -> NDArray[np.float64] | None:
    try:
        times = np.array([float(part) for part in mosaic.get("MosaicRefAcqTimes", [])]) / 1000
    except ValueError:
        raise VolumeError(header.path, "MosaicRefAcqTimes", "numbers", mosaic["MosaicRefAcqTimes"]) from None
    return times - times.min() if times.size == n_slices else None


def _assemble(header: _Header, geometry: _Geometry, pixels: NDArray[np.uint16] | NDArray[np.int16]) -> StoredVolume:
    n_x, n_y, n_slices = geometry.shape
    tiles = geometry.tiles
    grid = pixels.reshape(tiles, n_y, tiles, n_x)
    last_row, last_column = divmod(n_slices - 1, tiles)
    used_end = ((last_row * n_y + n_y - 1) * tiles + last_column) * n_x + n_x
    data = grid.transpose(3, 1, 0, 2).reshape(n_x, n_y, tiles * tiles)[:, :, :n_slices]
    t_r_ms = header.number(0x00180080, None, "RepetitionTime")
    return StoredVolume(
        identity=header.identity(),
        data=np.ascontiguousarray(data),
        slope=header.number(0x00281053, None, "RescaleSlope") or 1.0,
        intercept=header.number(0x00281052, 0.0, "RescaleIntercept") or 0.0,
        affine=geometry.affine,
        t_r_s=t_r_ms / 1000 if t_r_ms else None,
        slice_times_s=geometry.slice_times_s,
        acquired_s=header.acquired_s(),
        zero_tail=trailing_zeros(pixels[:used_end]),
    )
