"""Typed access to the header of one DICOM file, with errors that name the file and never a person."""

from __future__ import annotations

import dataclasses
import datetime
import re
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.elements import PIXEL_DATA, Damaged, Elements, parse
from rtdecode.acquire.stored import (
    GZIP_MAGIC,
    MAGNITUDE,
    MAX_FILE_BYTES,
    Identity,
    Origin,
    inflate,
    open_regular,
    read_bytes,
)
from rtdecode.errors import IncompleteFile, VolumeError

SERIES_UID, SERIES_NUMBER = 0x0020000E, 0x00200011
SOP_CLASS_UID, SOP_INSTANCE_UID, INSTANCE_NUMBER = 0x00080016, 0x00080018, 0x00200013
ACQUISITION_NUMBER = 0x00200012
IMAGE_TYPE, MANUFACTURER, SOFTWARE = 0x00080008, 0x00080070, 0x00181020
ROWS, COLUMNS, FRAMES = 0x00280010, 0x00280011, 0x00280008
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
BETWEEN, THICKNESS = 0x00180088, 0x00180050
REPETITION_TIME, ECHO_NUMBER, ECHO_TIME = 0x00180080, 0x00180086, 0x00180081
SLOPE, INTERCEPT = 0x00281053, 0x00281052
COMPONENT, CONTRAST = 0x00089208, 0x00089209
SERIES_DESCRIPTION, PROTOCOL_NAME = 0x0008103E, 0x00181030
SCANNING_SEQUENCE, ECHO_PLANAR = 0x00180020, 0x00189018
TEMPORAL_POSITIONS = 0x00200105
ACQUISITION_DATE, ACQUISITION_TIME, ACQUISITION_DATE_TIME = 0x00080022, 0x00080032, 0x0008002A
SIEMENS_SERIES_HEADER = 0x00291020
COMPONENTS = {"MAGNITUDE": "M", "PHASE": "P", "REAL": "R", "IMAGINARY": "I"}

_PREAMBLE = 128
_LARGEST_COUNT = 1 << 31
_PEEK_BYTES = 1 << 16
_LATEST_S = 1e11  # some days before the last that Python can tell
_CONTRASTS = re.compile(rb"lContrasts\s*=\s*(\d{1,2})\b")
_QUOTABLE = frozenset("0123456789.+-eE\\ ")
_CLASSIC_COMPONENTS = {"P": "P", "PHASE": "P", "R": "R", "REAL": "R", "I": "I", "IMAGINARY": "I", "PHASE MAP": "P"}
_NUMBERS = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FD": "d", b"FL": "f"}
# binary numbers that are read from files which do not declare their type; private ones by their offset in the block
_UNDECLARED = {
    (0x0018, 0x9082): "d",
    (0x0020, 0x9057): "I",
    (0x0020, 0x9128): "I",
    (0x0021, 0x4F): "h",
    (0x0028, 0x0002): "H",
    (0x0043, 0x7C): "f",
    (0x2001, 0x18): "i",
    (0x2005, 0x0E): "f",
}


class Fields:
    """One level of a header: values as text and numbers.

    Parameters
    ----------
    path : Path
        Named in errors.
    elements : Elements
    """

    def __init__(self, path: Path, elements: Elements) -> None:
        self.path = path
        self.elements = elements

    def raw(self, tag: int) -> bytes:
        """Value as stored; empty if absent."""
        return self.elements.raw(tag)

    def text(self, tag: int) -> str:
        """Value as text; empty if absent."""
        return self.elements.raw(tag).decode("latin-1").strip(" \0")

    def words(self, tag: int) -> tuple[str, ...]:
        """Values of a multi-valued text; none if absent."""
        text = self.text(tag)
        return tuple(part.strip() for part in text.split("\\")) if text else ()

    def numbers(self, tag: int, count: int, name: str) -> NDArray[np.float64]:
        """Exactly `count` finite numbers written as text.

        Raises
        ------
        VolumeError
            If the element is anything else.
        """
        text = self.text(tag)
        try:
            values = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            raise VolumeError(self.path, name, f"{count} numbers", shown(text)) from None
        if values.size != count or not np.isfinite(values).all():
            raise VolumeError(self.path, name, f"{count} finite numbers", shown(text))
        return values

    def number(self, tag: int, default: float | None, name: str) -> float | None:
        """One number written as text, or `default` if absent."""
        return float(self.numbers(tag, 1, name)[0]) if self.text(tag) else default

    def count(self, tag: int, name: str) -> int:
        """One whole number written as text.

        Raises
        ------
        VolumeError
            If the element is anything else, or beyond what 32 bits hold.
        """
        number = float(self.numbers(tag, 1, name)[0])
        if not number.is_integer() or abs(number) >= _LARGEST_COUNT:
            raise VolumeError(self.path, name, "a whole number of 32 bits", number)
        return int(number)

    def short(self, tag: int, name: str) -> int:
        """One unsigned 16-bit number.

        Raises
        ------
        VolumeError
            If the element is anything else.
        """
        value = self.raw(tag)
        if len(value) != 2:
            raise VolumeError(self.path, name, "one 16-bit number", f"{len(value)} bytes")
        return int.from_bytes(value, "big" if self.elements.order == ">" else "little")

    def value(self, tag: int) -> float | None:
        """First number of an element, text or binary; None if there is none that can be read."""
        span, raw = self.elements.spans.get(tag), self.raw(tag)
        if span is None or not raw:
            return None
        code = _NUMBERS.get(span.vr)
        if span.vr in (b"", b"UN"):
            code = _UNDECLARED.get((tag >> 16, tag & 0xFF if tag >> 16 & 1 else tag & 0xFFFF))
        try:
            if code is not None:
                found = struct.unpack_from(f"{self.elements.order}{code}", raw)[0]
            else:
                found = raw.decode("latin-1").strip(" \0").split("\\")[0]
            number = float(found)
        except (ValueError, struct.error):
            return None
        return number if np.isfinite(number) else None

    def private(self, group: int, creator: str, element: int) -> int:
        """Tag of a private element, wherever its creator's block lies; 0 if there is no such block."""
        for block in range(0x10, 0x100):
            tag = group << 16 | block
            if tag in self.elements.spans and self.text(tag).startswith(creator):
                return group << 16 | block << 8 | element
        return 0

    def items(self, tag: int) -> list[Fields]:
        """Items of a sequence; none if absent.

        Raises
        ------
        VolumeError
            If the sequence cannot be walked.
        """
        try:
            return [Fields(self.path, item) for item in self.elements.items(tag)]
        except (Damaged, struct.error) as error:
            raise VolumeError(self.path, f"sequence {tag:08x}", "readable items", error) from None


class Header(Fields):
    """Top level of one file.

    Parameters
    ----------
    path : Path
    content : bytes
        The file, inflated.
    packed : bool
        It came with a gzip trailer, which vouches for its completeness.
    stop : int or None
        Look no further than this tag.

    Raises
    ------
    IncompleteFile
        If the header cannot be walked (yet).
    VolumeError
        If it is no DICOM file.
    """

    def __init__(self, path: Path, content: bytes, *, packed: bool = False, stop: int | None = None) -> None:
        start = content[: _PREAMBLE + 4]
        if len(start) < _PREAMBLE + 4 or not any(start):
            raise IncompleteFile(path, "preamble", "132 bytes", f"{len(content)} bytes, all of them zero or too few")
        if start[_PREAMBLE:] != b"DICM":
            raise VolumeError(path, "preamble", "DICM at byte 128", repr(start[_PREAMBLE:]))
        try:
            elements = parse(content, MAX_FILE_BYTES, stop)
        except (Damaged, struct.error) as error:  # damaged or not yet written: only time can tell
            raise IncompleteFile(path, "header", "readable DICOM", f"{error} in {len(content)} bytes") from None
        super().__init__(path, elements)
        self.file = content
        self.packed = packed
        self.size = len(content)

    @property
    def has_pixels(self) -> bool:
        """Whether the walk came to the pixels."""
        return PIXEL_DATA in self.elements.spans

    def origin(self, layout: str, volumes: int | None = None) -> Origin:
        """Return what made the image.

        Parameters
        ----------
        layout : str
            Of the export.
        volumes : int or None
            Of the series, where a private header announces them.
        """
        announced = self.value(TEMPORAL_POSITIONS)
        return Origin(
            format=layout,
            vendor=self.text(MANUFACTURER) or None,
            software=self.text(SOFTWARE) or None,
            image_type=self.words(IMAGE_TYPE),
            names=tuple(name for tag in (SERIES_DESCRIPTION, PROTOCOL_NAME) if (name := self.text(tag))),
            contrast=self.text(CONTRAST) or None,
            echo_planar=self._echo_planar(),
            volumes=int(announced) if announced is not None and 0 < announced < _LARGEST_COUNT else volumes,
        )

    def _echo_planar(self) -> bool | None:
        """Whether the sequence is echo-planar; Philips does not say so in classic files."""
        stated = self.text(ECHO_PLANAR)
        if stated in ("YES", "NO"):
            return stated == "YES"
        sequence = self.words(SCANNING_SEQUENCE)
        philips = self.text(MANUFACTURER).upper().startswith("PHILIPS")
        return "EP" in sequence if sequence and not philips else None

    def identity(self) -> Identity:
        """Return which volume the file is by its own numbers, which count from 1 in DICOM.

        Raises
        ------
        VolumeError
            If it has no series, instance or number.
        """
        series, uid = self.text(SERIES_UID), self.text(SOP_INSTANCE_UID)
        if not series or not uid:
            raise VolumeError(self.path, "identity", "a series and an instance UID", "none")
        echo = self.value(ECHO_NUMBER)
        return Identity(
            series_uid=series,
            series_number=self.count(SERIES_NUMBER, "SeriesNumber") if self.text(SERIES_NUMBER) else 0,
            run=None,
            instance=self.count(INSTANCE_NUMBER, "InstanceNumber"),
            uid=uid,
            first=1,
            echo=int(echo) if echo is not None and 0 < echo < _LARGEST_COUNT else None,
            component=self.component(),
            echo_ms=self.value(ECHO_TIME),
            began_s=self.acquired_s(),
        )

    def volume_identity(self) -> Identity:
        """Return which volume a file of one volume is; `echoes` tells what its numbers count.

        Raises
        ------
        VolumeError
            If it has no identity.
        """
        acquisition = self.value(ACQUISITION_NUMBER)
        contrasts = _CONTRASTS.search(self.raw(SIEMENS_SERIES_HEADER))
        return dataclasses.replace(
            self.identity(),
            acquisition=int(acquisition) if acquisition is not None and 0 < acquisition < _LARGEST_COUNT else None,
            echoes=int(contrasts[1]) if contrasts else None,
        )

    def component(self) -> str:
        """Which part of the complex image it is, by its labels."""
        stated = self.text(COMPONENT)
        if stated in COMPONENTS:
            return COMPONENTS[stated]
        found = [_CLASSIC_COMPONENTS[word] for word in self.words(IMAGE_TYPE)[2:] if word in _CLASSIC_COMPONENTS]
        return found[0] if found else MAGNITUDE

    def t_r_s(self) -> float | None:
        """Repetition time in seconds."""
        t_r_ms = self.number(REPETITION_TIME, None, "RepetitionTime")
        return t_r_ms / 1000 if t_r_ms is not None and t_r_ms > 0 else None

    def acquired_s(self) -> float | None:
        """Start of acquisition in seconds since 1970; without an offset in the file, local time is meant."""
        time = self.text(ACQUISITION_TIME)
        joined = moment(self.text(ACQUISITION_DATE) + time) if time else None
        return joined if joined is not None else moment(self.text(ACQUISITION_DATE_TIME))


def open_header(path: Path, stop: int | None = None) -> Header:
    """Read a file, packed or not, and find its header.

    Raises
    ------
    IncompleteFile
        If the file is not complete enough to be read.
    VolumeError
        If it is no DICOM file.
    OSError
        If it cannot be read.
    """
    raw = read_bytes(path)
    if not raw.startswith(GZIP_MAGIC):
        return Header(path, raw, stop=stop)
    content, ended = inflate(path, raw, MAX_FILE_BYTES)
    if not ended:
        if len(content) >= MAX_FILE_BYTES:
            raise VolumeError(path, "size", f"at most {MAX_FILE_BYTES} bytes inflated", "more")
        raise IncompleteFile(path, "gzip", "an end marker", f"end of file at {len(raw)} bytes")
    return Header(path, content, packed=True, stop=stop)


def peek(path: Path, stop: int) -> Header:
    """Find the header in the first bytes of a file, up to a tag; for what need not be read as a whole.

    Raises
    ------
    VolumeError
        If it is no DICOM file, or its header is longer.
    OSError
        If it cannot be read.
    """
    with open_regular(path) as file:
        raw = file.read(_PEEK_BYTES)
    return Header(path, inflate(path, raw, _PEEK_BYTES)[0] if raw.startswith(GZIP_MAGIC) else raw, stop=stop)


def shown(text: str) -> str:
    """Quote a value for a message; what is no number or identifier may be anybody's name, and is not quoted."""
    short = text[:64]
    return repr(short) if not set(short) - _QUOTABLE else f"{len(text)} other characters"


def moment(text: str) -> float | None:
    """Seconds since 1970 of a DICOM date and time; local time is meant unless it carries an offset."""
    if len(text) < 14:
        return None
    for form in ("%Y%m%d%H%M%S.%f", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S.%f%z", "%Y%m%d%H%M%S%z"):
        try:
            found_s = datetime.datetime.strptime(text, form).timestamp()
            return found_s if found_s < _LATEST_S else None
        except (ValueError, OverflowError, OSError):
            continue
    return None
