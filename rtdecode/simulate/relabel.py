"""Makes a file of one series look like the same volume of another."""

from __future__ import annotations

import gzip
import hashlib
import io
from typing import Any

import nibabel as nib
import pydicom

_PREAMBLE = 128
_UIDS = (0x00080018, 0x0020000E)  # of the instance and of the series
_SERIES_NUMBER = 0x00200011
_NIFTI_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


def relabel(content: bytes, series: int) -> bytes:
    """Return the content as one of another series; nothing else changes, not even the length of a DICOM file.

    A DICOM file gets other series and instance UIDs and, where it fits, a later series number; in a NIfTI file,
    whose name tells the series, the low bits of the first voxel change, so that it is no copy. Any other file is
    returned as it is.

    Parameters
    ----------
    content : bytes
    series : int
        The same number gives files of the same series.
    """
    if content[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return _dicom(content, series)
    if content[:2] == b"\x1f\x8b":
        return gzip.compress(relabel(gzip.decompress(content), series), mtime=0)
    for order, size in (("<", int.from_bytes(content[:4], "little")), (">", int.from_bytes(content[:4], "big"))):
        kind = _NIFTI_HEADERS.get(size)
        if kind is not None:
            header = kind.from_fileobj(io.BytesIO(content))
            offset, width = int(header["vox_offset"]), int(header["bitpix"]) // 8
            at = offset if order == "<" else offset + width - 1
            return content[:at] + bytes([content[at] ^ (series & 0xFF)]) + content[at + 1 :]
    return content


def _dicom(content: bytes, series: int) -> bytes:
    dataset: Any = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    number = dataset.get_item(_SERIES_NUMBER)
    if number is not None:
        later = str(int(number.value or b"0") + series).encode()
        if len(later) <= number.length:
            at = number.value_tell
            content = content[:at] + later.ljust(number.length) + content[at + number.length :]
    for uid in [item.value.rstrip(b"\0") for tag in _UIDS if (item := dataset.get_item(tag)) is not None]:
        digits = int.from_bytes(hashlib.blake2b(uid + str(series).encode()).digest(), "big")
        content = content.replace(uid, f"2.25.{digits}".encode()[: len(uid)])
    return content
