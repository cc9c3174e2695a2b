"""DICOM files of every layout that scanners export; tells which layout a file has and hands it on."""

from __future__ import annotations

from pathlib import Path

from rtdecode.acquire.enhanced import PER_FRAME, SHARED, EnhancedReader
from rtdecode.acquire.header import IMAGE_TYPE, SOP_CLASS_UID, Header, open_header, peek, shown
from rtdecode.acquire.mosaic import MosaicReader
from rtdecode.acquire.slices import SliceReader
from rtdecode.acquire.stored import Identity, Reading
from rtdecode.errors import IncompleteFile, VolumeError

_MR, _ENHANCED = "1.2.840.10008.5.1.4.1.1.4", ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_PAST_IDENTITY, _MOSAIC = 0x00210000, "MOSAIC"


class DicomReader:
    """Reads one file; remembers the geometry of the latest series."""

    def __init__(self) -> None:
        self._mosaics = MosaicReader()
        self._enhanced = EnhancedReader()
        self._slices = SliceReader()

    def read(self, path: Path) -> Reading:
        """Decode one file.

        Raises
        ------
        IncompleteFile
            If the file ends before its pixels do, or its header cannot be walked (yet).
        VolumeError
            If it holds no volume or slice that can be placed.
        OSError
            If the file cannot be read.
        """
        header = open_header(path, stop=SHARED)
        if header.text(SOP_CLASS_UID) in _ENHANCED:
            return Reading(volumes=self._enhanced.read(header))
        if not header.has_pixels:
            header = Header(path, header.file, packed=header.packed)
        if PER_FRAME in header.elements.spans:
            return Reading(volumes=self._enhanced.read(header))
        if not header.has_pixels:
            raise IncompleteFile(path, "PixelData", "present", f"end of file at {header.size} bytes")
        kind = header.text(SOP_CLASS_UID)
        if kind and kind != _MR:
            raise VolumeError(path, "SOP class", "an MR image", shown(kind))
        volume = self._mosaics.read(header)
        if volume is not None:
            return Reading(volumes=(volume,))
        return Reading(slices=(self._slices.read(header),))

    def peek(self, path: Path) -> Identity | None:
        """Return the numbers of a file by its first bytes, as they are; None if they do not tell."""
        try:
            return peek(path, _PAST_IDENTITY).identity()
        except (VolumeError, OSError):
            return None

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a file is, as far as it can be told from a damaged one."""
        try:
            try:
                header = open_header(path, stop=SHARED)
            except IncompleteFile:  # it may end within the private elements, after all that names the volume
                header = open_header(path, stop=_PAST_IDENTITY)
                return header.volume_identity() if _MOSAIC in header.words(IMAGE_TYPE) else None
            if header.text(SOP_CLASS_UID) in _ENHANCED:
                return header.identity()
            if self._mosaics.tiles(header) is not None:
                return header.volume_identity()
            return self._slices.identify(header)
        except (VolumeError, OSError):
            return None
