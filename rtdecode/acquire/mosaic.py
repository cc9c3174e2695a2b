"""Mosaics, where one two-dimensional image holds a volume: Siemens (VB to VE) and United Imaging (VFRAME)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import csa, geometry, pixels, timing
from rtdecode.acquire.header import (
    ACQUISITION_DATE,
    ACQUISITION_DATE_TIME,
    ACQUISITION_TIME,
    BETWEEN,
    COLUMNS,
    IMAGE_TYPE,
    INTERCEPT,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    REPETITION_TIME,
    ROWS,
    SERIES_UID,
    SIEMENS_SERIES_HEADER,
    SLOPE,
    THICKNESS,
    Fields,
    Header,
    moment,
)
from rtdecode.acquire.latest import Latest
from rtdecode.acquire.stored import MAX_SLICES, StoredVolume, trailing_zeros
from rtdecode.errors import VolumeError

SIEMENS, UNITED_IMAGING = "siemens-mosaic", "uih-vframe"

_CSA_WANTED = ("NumberOfImagesInMosaic", "SliceNormalVector", "MosaicRefAcqTimes")
_KEY = (SERIES_UID, POSITION, ORIENTATION, PIXEL_SPACING, BETWEEN, THICKNESS, ROWS, COLUMNS, REPETITION_TIME)
_UIH_COUNT, _UIH_SLICES = 0x50, 0x51
_IMPLIED = "slice_times_s: implied by the slice order of the protocol, which fills the repetition time"
_MODE = re.compile(rb"sSliceArray\.ucMode\s*=\s*(?:0x)?([124])\b")
_DELAY = re.compile(rb"lDelayTimeInTR\s*=\s*(\d{1,9})\b")
_REPETITIONS = re.compile(rb"lRepetitions\s*=\s*(\d{1,6})\b")
_MULTIBAND = re.compile(rb"(?i)multi-?band\s+factor|MultiBandFactor\s*=\s*[2-9]|\bMB[2-9]\b")


@dataclass(frozen=True, slots=True)
class Tiles:
    """What is the same for all volumes of a series: tile layout, affine, slice times."""

    layout: str
    shape: tuple[int, int, int]
    across: int
    affine: NDArray[np.float64]
    slice_times_s: NDArray[np.float64] | None
    why_no_times: str = ""
    notes: tuple[str, ...] = ()
    volumes: int | None = None


class MosaicReader:
    """Cuts mosaics into volumes; remembers the geometry of the latest series of Siemens."""

    def __init__(self) -> None:
        self._known: Latest[tuple[bytes, ...], Tiles] = Latest()

    def read(self, header: Header) -> StoredVolume | None:
        """Decode a mosaic; None if the file is none.

        Raises
        ------
        VolumeError
            If it is one, and cannot be used.
        """
        tiles = self.tiles(header)
        return None if tiles is None else _cut(header, tiles)

    def tiles(self, header: Header) -> Tiles | None:
        """Return how a mosaic is laid out, pixels unseen; None if the file is none.

        Raises
        ------
        VolumeError
            If it is one, and its header cannot be used.
        """
        if "VFRAME" in header.words(IMAGE_TYPE):
            return _united_imaging(header)
        key = tuple(header.raw(tag) for tag in _KEY)
        tiles = self._known.get(key)
        if tiles is None:
            tiles = _siemens(header)
            if tiles is not None and _in_order(tiles.slice_times_s, header.t_r_s()):
                self._known[key] = tiles
        return tiles


def _in_order(times_s: NDArray[np.float64] | None, t_r_s: float | None) -> bool:
    """Whether slice times are plain enough to hold for the whole series."""
    if times_s is None:
        return False
    found, note = timing.slice_times(times_s, t_r_s)
    return found is not None and not note


def _siemens(header: Header) -> Tiles | None:
    private = _csa(header)
    try:
        n_slices = int(private["NumberOfImagesInMosaic"][0])
    except (KeyError, IndexError, ValueError):
        if "MOSAIC" in header.words(IMAGE_TYPE):
            raise VolumeError(header.path, "NumberOfImagesInMosaic", "in the CSA header of a mosaic", "none") from None
        return None
    if not 0 < n_slices <= MAX_SLICES:
        raise VolumeError(header.path, "NumberOfImagesInMosaic", f"1 to {MAX_SLICES}", n_slices)
    across = int(np.ceil(np.sqrt(n_slices)))
    rows, columns = header.short(ROWS, "Rows"), header.short(COLUMNS, "Columns")
    if rows % across or columns % across or not rows or not columns:
        raise VolumeError(header.path, "mosaic", f"{rows} x {columns} pixels to hold {n_slices} tiles", "a remainder")
    shape = columns // across, rows // across, n_slices
    try:
        times = np.array([float(part) for part in private.get("MosaicRefAcqTimes", [])]) / 1000
    except ValueError:
        raise VolumeError(header.path, "MosaicRefAcqTimes", "numbers", "others") from None
    complete = times.size == n_slices and bool(np.isfinite(times).all())
    protocol = header.raw(SIEMENS_SERIES_HEADER)
    implied = None if complete or times.size else implied_times(protocol, header.t_r_s(), n_slices)
    return Tiles(
        layout=SIEMENS,
        shape=shape,
        across=across,
        affine=_siemens_affine(header, private, shape, across),
        slice_times_s=times - times.min() if complete else implied,
        notes=(_IMPLIED,) if implied is not None else (),
        why_no_times=f"the private header has {times.size} times for {n_slices} slices",
        volumes=int(repeated[1]) + 1 if (repeated := _REPETITIONS.search(protocol)) else None,
    )


def _csa(header: Header) -> dict[str, list[str]]:
    """Wanted elements of the private header; none where there is no such header."""
    for block in range(0x10, 0x100):
        if (tag := 0x00290000 + block) in header.elements.spans and header.text(tag) == "SIEMENS CSA HEADER":
            try:
                return csa.parse(header.raw(0x00290000 + (block << 8) + 0x10), _CSA_WANTED)
            except ValueError as error:
                raise VolumeError(header.path, "CSA header", "a readable one", error) from None
    return {}


def implied_times(protocol: bytes, t_r_s: float | None, n_slices: int) -> NDArray[np.float64] | None:
    """Slice times by the order in the protocol of releases that write no times (before VB15); after dcm2niix.

    Parameters
    ----------
    protocol : bytes
        Private series header with the protocol as text.
    t_r_s : float or None
    n_slices : int

    Returns
    -------
    array of shape (n_slices,) or None
        None where the order is unknown, or several slices are excited at once.
    """
    mode, delay = _MODE.search(protocol), _DELAY.search(protocol)
    if mode is None or t_r_s is None or n_slices < 2 or _MULTIBAND.search(protocol):
        return None
    busy_s = t_r_s - (int(delay[1]) / 1e6 if delay else 0.0)
    place = np.arange(n_slices)
    if mode[1] == b"1":
        turn = place
    elif mode[1] == b"2":
        turn = place[::-1]
    elif n_slices % 2:
        turn = np.where(place % 2 == 0, place // 2, (n_slices + 1) // 2 + place // 2)
    else:
        turn = np.where(place % 2 == 0, n_slices // 2 + place // 2, place // 2)
    return np.asarray(turn * (busy_s / n_slices), dtype=np.float64)


def _siemens_affine(
    header: Header, private: dict[str, list[str]], shape: tuple[int, int, int], across: int
) -> NDArray[np.float64]:
    """Return the affine; the position in the file is that of the whole mosaic, not of its first tile."""
    orientation = header.numbers(ORIENTATION, 6, "ImageOrientationPatient")
    spacing = header.numbers(PIXEL_SPACING, 2, "PixelSpacing")
    between = header.number(BETWEEN, None, "SpacingBetweenSlices") or header.number(THICKNESS, None, "SliceThickness")
    normal = geometry.normal(orientation)
    try:
        stated = np.array([float(part) for part in private.get("SliceNormalVector", [])[:3]])
    except ValueError:
        stated = np.empty(0)
    if stated.size == 3 and normal @ stated < 0:
        normal = -normal
    if not between:
        raise VolumeError(header.path, "SpacingBetweenSlices", "a distance in mm, or SliceThickness", between)
    corner = header.numbers(POSITION, 3, "ImagePositionPatient")
    spread = orientation[:3] * spacing[1] * shape[0] + orientation[3:] * spacing[0] * shape[1]
    return geometry.affine(header.path, orientation, spacing, normal * between, corner + (across - 1) / 2 * spread)


def _united_imaging(header: Header) -> Tiles:
    """Geometry from the private sequence that describes each tile."""
    path = header.path
    slices = header.items(header.private(0x0065, "Image Private Header", _UIH_SLICES))
    stated = header.value(header.private(0x0065, "Image Private Header", _UIH_COUNT))
    n_slices = len(slices)
    if not 0 < n_slices <= MAX_SLICES or (stated is not None and stated != n_slices):
        raise VolumeError(path, "(0065,1051)", f"a description of each of {stated} tiles", n_slices)
    across = int(np.ceil(np.sqrt(n_slices)))
    down = -(-n_slices // across)
    rows, columns = header.short(ROWS, "Rows"), header.short(COLUMNS, "Columns")
    if rows % down or columns % across or not rows or not columns:
        raise VolumeError(path, "mosaic", f"{rows} x {columns} pixels to hold {n_slices} tiles", "a remainder")
    orientation = header.numbers(ORIENTATION, 6, "ImageOrientationPatient")
    spacing = header.numbers(PIXEL_SPACING, 2, "PixelSpacing")
    centres = np.array([item.numbers(POSITION, 3, "ImagePositionPatient") for item in slices])
    rank, _ = geometry.places(path, centres, orientation)
    if not np.array_equal(np.abs(np.diff(rank)), np.ones(n_slices - 1)):
        raise VolumeError(path, "(0065,1051)", "tiles in order of position", rank.tolist()[:8])
    between = header.number(BETWEEN, None, "SpacingBetweenSlices")
    step = geometry.step(path, centres, orientation, between)
    return Tiles(
        layout=UNITED_IMAGING,
        shape=(columns // across, rows // down, n_slices),
        across=across,
        affine=geometry.affine(path, orientation, spacing, step, centres[0]),
        slice_times_s=_relative([_started_s(item) for item in slices]),
        why_no_times="tiles carry no acquisition time",
    )


def _started_s(item: Fields) -> float | None:
    return moment(item.text(ACQUISITION_DATE_TIME)) or moment(item.text(ACQUISITION_DATE) + item.text(ACQUISITION_TIME))


def _relative(times: Sequence[float | None]) -> NDArray[np.float64] | None:
    known = [time for time in times if time is not None]
    if not known or len(known) < len(times) or max(known) == min(known):
        return None
    return timing.since_first(known)


def _cut(header: Header, tiles: Tiles) -> StoredVolume:
    frame, zero_tail = pixels.frames(header)
    n_x, n_y, n_slices = tiles.shape
    across = tiles.across
    down = frame.shape[1] // n_y
    if frame.shape[0] != 1 or frame.shape[1:] != (down * n_y, across * n_x):
        raise VolumeError(header.path, "mosaic", f"one image of {across} x {down} tiles", frame.shape)
    grid = frame.reshape(down, n_y, across, n_x)
    data: NDArray[Any] = np.ascontiguousarray(
        grid.transpose(3, 1, 0, 2).reshape(n_x, n_y, down * across)[:, :, :n_slices]
    )
    last_row, last_column = divmod(n_slices - 1, across)
    used_end = ((last_row * n_y + n_y - 1) * across + last_column) * n_x + n_x
    acquired = header.acquired_s()
    if acquired is None and tiles.layout == UNITED_IMAGING:
        slices = header.items(header.private(0x0065, "Image Private Header", _UIH_SLICES))
        known = timing.unwrapped([s for item in slices if (s := _started_s(item)) is not None])
        acquired = float(known.min()) if known.size else None
    return StoredVolume(
        identity=header.volume_identity(),
        origin=header.origin(tiles.layout, tiles.volumes),
        data=data,
        slope=header.number(SLOPE, None, "RescaleSlope") or 1.0,
        intercept=header.number(INTERCEPT, 0.0, "RescaleIntercept") or 0.0,
        affine=tiles.affine,
        t_r_s=header.t_r_s(),
        slice_times_s=tiles.slice_times_s,
        acquired_s=acquired,
        zero_tail=trailing_zeros(frame.reshape(-1)[:used_end]) if zero_tail else 0,
        notes=tiles.notes,
        unknown={
            "t_r_s": "no RepetitionTime in the header",
            "slice_times_s": tiles.why_no_times,
            "acquired_s": "no readable acquisition date and time in the header",
        },
    )
