"""One slice per file: GE, Philips classic, Siemens XA interoperability and single-slice exports of others.

What says which volume a slice belongs to differs by vendor; it is always something that the file tells, never its
name or when it came.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import ge, pixels
from rtdecode.acquire.header import (
    ACQUISITION_NUMBER,
    BETWEEN,
    IMAGE_TYPE,
    INTERCEPT,
    MANUFACTURER,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SERIES_UID,
    SIEMENS_SERIES_HEADER,
    SLOPE,
    TEMPORAL_POSITIONS,
    THICKNESS,
    Fields,
    Header,
)
from rtdecode.acquire.latest import Latest
from rtdecode.acquire.stored import MAX_SLICES, NO_PHILIPS_TIMES, Identity, StoredSlice
from rtdecode.errors import VolumeError

_TEMPORAL_POSITION = 0x00200100
_STACK_POSITION = 0x00209057
_SPLIT = 1000
_MOST_VOLUMES = 1 << 31
_PHOENIX = re.compile(rb"sSliceArray\.lSize\s*=\s*(\d{1,4})\b")
_GE_START = "GE writes the start of the series in every slice, not that of the volume"


@dataclass(frozen=True, slots=True)
class _Series:
    """What the slices of a series share."""

    vendor: str
    n_slices: int | None
    told_t_r_s: float | None
    t_r_s: float | None
    protocol_times_s: NDArray[np.float64] | None
    why_no_times: str


class SliceReader:
    """Reads single slices; remembers what the latest series share."""

    def __init__(self) -> None:
        self._known: Latest[str, _Series] = Latest()
        self._bases: Latest[str, int] = Latest()

    def read(self, header: Header) -> StoredSlice:
        """Decode one slice.

        Raises
        ------
        VolumeError
            If it cannot be told which slice of which volume it is.
        """
        identity = self.identify(header)
        known = self._known.get(identity.series_uid)
        if known is None or known.told_t_r_s != header.t_r_s():
            known = self._known[identity.series_uid] = _series(header)
        frame, zero_tail = pixels.frames(header)
        if frame.shape[0] != 1:
            raise VolumeError(header.path, "NumberOfFrames", 1, frame.shape[0])
        slope, intercept = scaling(header, header)
        acquired, unknown = header.acquired_s(), {"slice_times_s": known.why_no_times}
        if known.vendor == "GE" and identity.instance > 1:
            acquired, unknown["acquired_s"] = None, _GE_START
        return StoredSlice(
            identity=identity,
            origin=header.origin("slice-per-file"),
            data=frame[0].T,
            slope=slope,
            intercept=intercept,
            orientation=header.numbers(ORIENTATION, 6, "ImageOrientationPatient"),
            position=header.numbers(POSITION, 3, "ImagePositionPatient"),
            spacing_mm=header.numbers(PIXEL_SPACING, 2, "PixelSpacing"),
            between_mm=header.number(BETWEEN, None, "SpacingBetweenSlices") or header.number(THICKNESS, None, "Slices"),
            n_slices=known.n_slices,
            number=int(header.value(_STACK_POSITION) or header.identity().instance),
            t_r_s=known.t_r_s,
            acquired_s=acquired,
            protocol_times_s=known.protocol_times_s,
            timer=ge.timer(header) if known.vendor == "GE" else None,
            zero_tail=zero_tail,
            unknown=unknown,
        )

    def identify(self, header: Header) -> Identity:
        """Return which volume a slice belongs to.

        Raises
        ------
        VolumeError
            If the file does not tell.
        """
        identity = header.identity()
        if _vendor(header) == "SIEMENS":
            return self._siemens(header, identity)
        volume = header.value(_TEMPORAL_POSITION) if header.value(TEMPORAL_POSITIONS) else None
        if volume is None:
            known = self._known.get(identity.series_uid)
            n_slices = known.n_slices if known is not None else _stated_slices(header)
            if not n_slices or identity.instance < 1:
                raise VolumeError(header.path, "volume of the slice", "a temporal position or slice count", "none")
            volume = (identity.instance - 1) // n_slices + 1
        if not 0 <= volume < _MOST_VOLUMES:
            raise VolumeError(header.path, "volume of the slice", f"0 to {_MOST_VOLUMES}", volume)
        return dataclasses.replace(identity, instance=int(volume))

    def _siemens(self, header: Header, identity: Identity) -> Identity:
        """XA splits a series: 7001, 7002, ... are volumes 1, 2, ... of series 7; otherwise acquisitions count."""
        if identity.series_number < _SPLIT or "MFSPLIT" not in header.words(IMAGE_TYPE):
            return dataclasses.replace(identity, instance=header.count(ACQUISITION_NUMBER, "AcquisitionNumber"))
        related = [f.text(SERIES_UID) for f in header.items(0x00081250)]
        whole = next((uid for uid in related if uid), f"{header.text(0x0020000D)}/{identity.series_number // _SPLIT}")
        base = self._bases.get(whole)
        if base is None:
            base = self._bases[whole] = identity.series_number // _SPLIT
        volume = identity.series_number - base * _SPLIT
        return dataclasses.replace(identity, series_uid=whole, series_number=base, instance=volume)


def _vendor(header: Header) -> str:
    name = header.text(MANUFACTURER).upper()
    return next((vendor for vendor in ("SIEMENS", "GE", "PHILIPS") if name.startswith(vendor)), name)


def _stated_slices(header: Header) -> int | None:
    """Return the number of slices of a volume, as the vendor states it."""
    vendor, stated = _vendor(header), None
    if vendor == "GE":
        stated = header.value(header.private(0x0021, ge.RELATED, 0x4F))
    elif vendor == "PHILIPS":
        stated = header.value(header.private(0x2001, "Philips Imaging DD 001", 0x18))
    elif vendor == "SIEMENS":
        protocol = header.raw(header.private(0x0021, "SIEMENS MR SDS 01", 0x19)) or header.raw(SIEMENS_SERIES_HEADER)
        found = _PHOENIX.search(protocol)
        stated = float(found[1]) if found else None
    return int(stated) if stated is not None and 0 < stated <= MAX_SLICES else None


def _series(header: Header) -> _Series:
    vendor, n_slices = _vendor(header), _stated_slices(header)
    if vendor == "GE" and n_slices is not None:
        t_r_s, times, why = ge.timing(header, ge.protocol(header), n_slices)
        return _Series(vendor, n_slices, header.t_r_s(), t_r_s, times, why)
    why = NO_PHILIPS_TIMES if vendor == "PHILIPS" else "all slices carry the same acquisition time"
    return _Series(vendor, n_slices, header.t_r_s(), header.t_r_s(), None, why)


def scaling(fields: Fields, private: Fields) -> tuple[float, float]:
    """Slope and intercept; Philips' own value is ``(raw * RS + RI) / (RS * SS)``.

    Parameters
    ----------
    fields : Fields
        Where the rescale slope RS and intercept RI are.
    private : Fields
        Where the private scale slope SS may be.
    """
    slope = fields.number(SLOPE, None, "RescaleSlope") or 1.0
    intercept = fields.number(INTERCEPT, 0.0, "RescaleIntercept") or 0.0
    precise = private.value(private.private(0x2005, "Philips MR Imaging DD 001", 0x0E))
    if precise and private.text(0x00281054) in ("", "normalized"):
        return 1.0 / precise, intercept / (slope * precise)
    return slope, intercept
