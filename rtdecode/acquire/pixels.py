"""Stored values of the frames of a DICOM file, in every transfer syntax that scanners and archives use."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from rtdecode.acquire.elements import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT, PIXEL_DATA
from rtdecode.acquire.header import COLUMNS, FRAMES, ROWS, Header, shown
from rtdecode.acquire.stored import MAX_FILE_BYTES, trailing_zeros
from rtdecode.errors import IncompleteFile, VolumeError

PLAIN = frozenset((IMPLICIT, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED))

_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0"
_LONGEST_TAIL = 4096
_J2K = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")
_JPEG = "1.2.840.10008.1.2.4."
_START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xF7))
_CODEC_ERRORS = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, NotImplementedError, struct.error)


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How frames are stored.

    Attributes
    ----------
    rows, columns, frames : int
    dtype : numpy dtype
        As in the file, byte order included.
    bits : int
        Bits that hold the value; those above mean nothing.
    """

    rows: int
    columns: int
    frames: int
    dtype: np.dtype[Any]
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, uncompressed."""
        return self.rows * self.columns * self.frames * self.dtype.itemsize


def layout(header: Header) -> PixelLayout:
    """Read how the frames of a file are stored.

    Raises
    ------
    VolumeError
        If they are not grey integers of 8, 16 or 32 bits, or too many.
    """
    path = header.path
    rows, columns = header.short(ROWS, "Rows"), header.short(COLUMNS, "Columns")
    frames = header.number(FRAMES, 1.0, "NumberOfFrames") or 0.0
    allocated, stored = header.short(0x00280100, "BitsAllocated"), header.short(0x00280101, "BitsStored")
    samples = header.value(0x00280002)
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or samples not in (None, 1.0):
        raise VolumeError(path, "pixels", "one integer of 8, 16 or 32 bits", f"{samples} of {stored}/{allocated} bits")
    kind = "i" if header.short(0x00280103, "PixelRepresentation") == 1 else "u"
    dtype = np.dtype(f"{header.elements.order}{kind}{allocated // 8}")
    found = PixelLayout(rows, columns, int(frames), dtype, stored)
    if not 0 < found.nbytes <= MAX_FILE_BYTES:
        raise VolumeError(path, "pixels", f"1 to {MAX_FILE_BYTES} bytes", f"{columns} x {rows} x {frames:g} pixels")
    return found


def frames(header: Header) -> tuple[NDArray[Any], int]:
    """Decode all frames of a file.

    Returns
    -------
    values : array of shape (frames, rows, columns), native integers
    zero_tail : int
        How many of the last values are zero, where nothing in the file says that they were written.

    Raises
    ------
    IncompleteFile
        If the file ends before its pixels do.
    VolumeError
        If they cannot be decoded; names the missing extra where that is why.
    """
    span = header.elements.spans.get(PIXEL_DATA)
    if span is None:
        raise IncompleteFile(header.path, "PixelData", "present", f"end of file at {header.size} bytes")
    found, syntax = layout(header), header.elements.syntax
    shape = (found.frames, found.rows, found.columns)
    if syntax not in PLAIN:
        return _decode(header, found, span.start).reshape(shape), 0
    expected = found.nbytes
    if span.length not in (expected, expected + expected % 2):
        raise VolumeError(header.path, "PixelData", f"rows x columns x frames = {expected} bytes", span.length)
    if len(header.elements.content) < span.start + expected:
        got = len(header.elements.content) - span.start
        raise IncompleteFile(header.path, "PixelData", f"{expected} bytes", got)
    flat = np.frombuffer(
        header.elements.content, found.dtype, count=expected // found.dtype.itemsize, offset=span.start
    )
    written = header.packed or syntax == DEFLATED
    return masked(flat, found).reshape(shape), 0 if written else trailing_zeros(flat)


def masked(values: NDArray[Any], found: PixelLayout) -> NDArray[Any]:
    """Native values with the bits above the stored ones removed, the sign kept."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    spare = found.dtype.itemsize * 8 - found.bits
    if spare == 0:
        return native
    if native.dtype.kind == "u":
        return native & native.dtype.type((1 << found.bits) - 1) if int(native.max()) >> found.bits else native
    shifted: NDArray[Any] = np.right_shift(np.left_shift(native, spare), spare)
    return shifted


def _decode(header: Header, found: PixelLayout, start: int) -> NDArray[Any]:
    """Decode encapsulated frames with the codec of the transfer syntax."""
    path, syntax = header.path, header.elements.syntax
    content = header.elements.content[start:]
    if not header.packed and _SEQUENCE_DELIMITER not in content[-_LONGEST_TAIL:]:
        raise IncompleteFile(path, "PixelData", "a sequence delimiter", f"end of file at {header.size} bytes")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise VolumeError(path, "transfer syntax", "one of the DICOM standard for images", shown(syntax)) from None
    if not decoder.is_available:
        raise VolumeError(path, "transfer syntax", "a codec: pip install '.[jpeg]'", shown(syntax))
    values: list[NDArray[Any]] = []
    try:
        for frame in generate_frames(content, number_of_frames=found.frames):
            if len(values) == found.frames:
                break
            _check_size(header, found, frame)
            decoded, _ = decoder.as_array(
                _encapsulated(frame),
                rows=found.rows,
                columns=found.columns,
                number_of_frames=1,
                samples_per_pixel=1,
                photometric_interpretation="MONOCHROME2",
                bits_allocated=found.dtype.itemsize * 8,
                bits_stored=found.bits,
                pixel_representation=int(found.dtype.kind == "i"),
                pixel_keyword="PixelData",
                raw=True,
            )
            values.append(np.asarray(decoded))
    except _CODEC_ERRORS as error:
        raise VolumeError(path, "PixelData", f"frames in {shown(syntax)}", type(error).__name__) from None
    if len(values) != found.frames or any(value.size != found.rows * found.columns for value in values):
        raise VolumeError(path, "PixelData", f"{found.frames} frames of {found.columns} x {found.rows}", len(values))
    native = found.dtype.newbyteorder("=")
    return masked(np.stack(values).astype(native, copy=False), found)


def _encapsulated(frame: bytes) -> bytes:
    """One frame as the value of a PixelData element."""
    padded = frame + b"\0" * (len(frame) % 2)
    return (
        b"\xfe\xff\x00\xe0\0\0\0\0"
        + b"\xfe\xff\x00\xe0"
        + len(padded).to_bytes(4, "little")
        + padded
        + _SEQUENCE_DELIMITER
        + b"\0\0\0\0"
    )


def _check_size(header: Header, found: PixelLayout, frame: bytes) -> None:
    """Refuse a code stream that announces another size than the header, before its codec allocates it."""
    syntax = header.elements.syntax
    if syntax.startswith(_J2K):
        at = frame.find(b"\xff\x51", 0, 256)
        size = struct.unpack_from(">IIII", frame, at + 6) if at >= 0 else None
        got = (size[1] - size[3], size[0] - size[2]) if size else None
    elif syntax.startswith(_JPEG):
        got = _jpeg_size(frame)
    else:
        return
    if got != (found.rows, found.columns):
        raise VolumeError(header.path, "code stream", f"{found.rows} x {found.columns} pixels", got)


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Lines and samples per line of a JPEG or JPEG-LS stream, from its start-of-frame segment."""
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _START_OF_FRAME:
            lines, samples = struct.unpack_from(">HH", frame, at + 5)
            return lines, samples
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
