"""Slice times of GE scanners, from the protocol block that every image carries.

The timer in (0021,105E) is zero or partial in most exports and tells single-band times for early multiband, so the
protocol goes first and the timer is the last resort. Rules after dcm2niix (https://github.com/rordenlab/dcm2niix/tree/master/GE).
"""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.header import SOFTWARE, Header
from rtdecode.acquire.stored import GZIP_WBITS

PARAMETERS, SERIES, RELATED = "GEMS_PARM_01", "GEMS_SERS_01", "GEMS_RELA_01"

_MAX_PROTOCOL_BYTES = 1 << 20
_EARLY_TIMER_S = 1e-4
_ENTRY = re.compile(r'^([A-Z0-9_]+) "([^"]*)"', re.MULTILINE)
_RELEASE = re.compile(r"(\d+)\.(\d+)_[A-Z](\d+)")
_FIRST_WITH_MULTIBAND_ORDER, _NEW_ORDER = 26, (27, 3)


def protocol(header: Header) -> dict[str, str]:
    """Entries of the protocol block; none if there is no readable one."""
    raw = header.raw(header.private(0x0025, SERIES, 0x1B))
    try:
        text = zlib.decompressobj(GZIP_WBITS).decompress(raw[4:], _MAX_PROTOCOL_BYTES)
    except zlib.error:
        return {}
    return dict(_ENTRY.findall(text.decode("latin-1")))


def timing(
    header: Header, entries: dict[str, str], n_slices: int
) -> tuple[float | None, NDArray[np.float64] | None, str]:
    """Work out repetition time and slice times of an echo-planar series.

    Parameters
    ----------
    header : Header
    entries : dict of str to str
        From `protocol`.
    n_slices : int

    Returns
    -------
    t_r_s : float or None
        Repetition time with any pause between volumes.
    times_s : array of shape (n_slices,) or None
        In the order of the slices' numbers.
    why : str
        Why there are no times.
    """
    t_r_s = header.t_r_s()
    options = entries.get("IOPT", "")
    if t_r_s is None or not entries:
        return t_r_s, None, "no protocol block (0025,101B) to tell the slice order"
    pause = header.value(header.private(0x0043, PARAMETERS, 0x7C)) or 0.0
    interleaved = True
    if "FMRI" in options:
        interleaved = entries.get("SLICEORDER", "1") != "0"
    elif "MPh" in options:
        if "MPhVar" in options:
            return t_r_s, None, "multi-phase with variable delays"
        pause = 0.0 if entries.get("DELACQ") == "Minimum" else _number(entries.get("DELACQNOAV", "0"))
        t_r_s += max(pause, 0.0)
    else:
        return t_r_s, None, f"slice order unknown for a sequence with options {options or 'none'}"
    release = _RELEASE.search(header.text(SOFTWARE))
    if release is None:
        return t_r_s, None, "no software release in SoftwareVersions"
    major, revision = int(release[1]), int(release[3])
    stated = header.words(header.private(0x0043, PARAMETERS, 0xB6))
    bands = int(max(_number(entries.get("MBACCEL", "1")), _number(stated[0]) if stated else 1.0, 1.0))
    if bands > 1 and major < _FIRST_WITH_MULTIBAND_ORDER:
        return t_r_s, None, f"slice order of multiband before release {_FIRST_WITH_MULTIBAND_ORDER} unknown"
    excited = _excitations(n_slices, bands, t_r_s - pause, interleaved, (major, revision) >= _NEW_ORDER)
    return t_r_s, excited[np.arange(n_slices) % excited.size], ""


def timer(header: Header) -> float | None:
    """Time of a slice by the scanner's own clock, in seconds or, in early releases, in tenths of a millisecond."""
    return header.value(header.private(0x0021, RELATED, 0x5E))


def by_timer(values: NDArray[np.float64], t_r_s: float) -> NDArray[np.float64] | None:
    """Slice times by `timer`; None where it is partial: each time must occur as often as any other.

    Parameters
    ----------
    values : array of shape (n_slices,)
    t_r_s : float
        Tells the unit.
    """
    relative = values - values.min()
    _, counts = np.unique(np.round(relative, 3), return_counts=True)
    if counts.size < 2 or counts.min() != counts.max():
        return None
    for unit in (1.0, _EARLY_TIMER_S):
        if relative.max() * unit < t_r_s:
            return np.asarray(relative * unit, dtype=np.float64)
    return None


def _excitations(n_slices: int, bands: int, busy_s: float, interleaved: bool, new_order: bool) -> NDArray[np.float64]:
    """Time of each excitation, by its place."""
    count = -(-n_slices // bands)
    if bands > 1 and not new_order and count % 2 == 0:
        count += 1
    turn = np.arange(count)
    if interleaved:
        turn = np.where(turn % 2 == 0, turn // 2, (count - 1) // 2 + (turn + 1) // 2)
        if bands > 1 and new_order and count > 2 and count % 2 == 0:
            turn[[count - 1, count - 3]] = turn[[count - 3, count - 1]]
    return np.asarray(turn * (busy_s / count), dtype=np.float64)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if np.isfinite(number) else 0.0
