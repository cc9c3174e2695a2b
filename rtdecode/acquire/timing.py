"""Whether repetition and slice times can be true: one judgement for every format, sidecar and command.

A header may tell the time of a shot or a slice instead of a volume's, milliseconds for seconds, or times that wrapped
at midnight. What is certain is repaired, and said; what is not becomes unknown, and is doubted aloud (`doubts`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.stored import StoredVolume

LEAST_S, MOST_S = 0.095, 30.0
"""Repetition times of whole volumes, seconds."""
LEAST_OF_FEW_SLICES_S, FEW_SLICES = 0.01, 2
DAY_S = 86400.0
HEADER_DEFAULT_S = 1.0
"""What converters write into a NIfTI header where they know no repetition time."""
IMPLAUSIBLE = "implausible: "

_MILLI = 1e-3
_NEEDS_PROOF_S = 0.3  # shorter ones may be those of a shot: acquisition times are asked, where there are any
_LEAST_SHARE = 0.2  # of the repetition time that slices fill, if they are to be read as milliseconds
_REMEMBERED = 16
_RELATIVE, _ABSOLUTE_S = 0.05, 0.005
_REGULAR = 0.02
_AGREE = 1e-3
_GRID_S, _GRID_ERROR_S = 0.01, 0.003


def doubts(problems: Iterable[str]) -> list[tuple[str, str]]:
    """Return field and text of those problems of a volume that nothing could repair."""
    return [(field, text) for field, _, text in (p.partition(": ") for p in problems) if text.startswith(IMPLAUSIBLE)]


def plausible(t_r_s: float, n_slices: int) -> bool:
    """Whether a whole volume can be acquired every `t_r_s` seconds."""
    least_s = LEAST_S if n_slices > FEW_SLICES else LEAST_OF_FEW_SLICES_S
    return least_s <= t_r_s <= MOST_S


def repetition_time(
    told: float, n_slices: int, scale: float = 1.0, scales: Sequence[float] = (1.0, _MILLI)
) -> tuple[float | None, str]:
    """Judge a stated repetition time.

    Parameters
    ----------
    told : float
        As stated.
    n_slices : int
    scale : float
        Stated unit, seconds.
    scales : sequence of float
        Units that may have been meant instead.

    Returns
    -------
    t_r_s : float or None
        None where it cannot be that of a volume and no other unit makes it so, or several do.
    note : str
        What was repaired, or why it is unknown; empty if nothing is wrong.
    """
    if plausible(told * scale, n_slices):
        return told * scale, ""
    meant = {told * other for other in scales if plausible(told * other, n_slices)}
    if len(meant) == 1:
        (t_r_s,) = meant
        return t_r_s, f"t_r_s: {told * scale:g} s in the file, read as {t_r_s:g} s: another unit was meant"
    return None, f"{IMPLAUSIBLE}expected {LEAST_S:g} to {MOST_S:g} s for a whole volume, got {told * scale:g} s"


def slice_times(times: NDArray[np.float64], t_r_s: float | None) -> tuple[NDArray[np.float64] | None, str]:
    """Judge stated slice times.

    Parameters
    ----------
    times : array of shape (k,)
        Seconds after the start of the volume, as stated.
    t_r_s : float or None

    Returns
    -------
    times : array of shape (k,) or None
        Within [0, t_r_s); None where they are not, and cannot be made so with certainty.
    note : str
        What was repaired, or why they are unknown; empty if nothing is wrong.
    """
    end_s = MOST_S if t_r_s is None else t_r_s
    if len(times) > 1 and np.ptp(times) == 0:
        return None, "all slices are told to be acquired at one time"
    if np.isfinite(times).all():
        if _within(times, end_s):
            return times, ""
        turned = since_first(times)
        if np.ptp(times) > DAY_S / 2 and _within(turned, end_s):
            return turned, "slice_times_s: wrapped at midnight in the file, repaired"
        if t_r_s is not None and _within(times * _MILLI, end_s) and times.max() * _MILLI >= _LEAST_SHARE * t_r_s:
            return times * _MILLI, "slice_times_s: milliseconds in the file, read as such"
        got = f"{times.min():g} to {times.max():g} s"
    else:
        got = "others than numbers"
    return None, f"{IMPLAUSIBLE}expected times within the repetition time ({end_s:g} s), got {got}"


def _within(times: NDArray[np.float64], end_s: float) -> bool:
    return bool(times.min() >= 0 and times.max() < end_s)


def unwrapped(times: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Put times of one moment that lie on both sides of midnight, without their dates, in order."""
    found = np.asarray(times, np.float64)
    if not found.size:
        return found
    return np.where(found.max() - found > DAY_S / 2, found + DAY_S, found)


def since_first(times: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds after the earliest of some times, which may lie on both sides of midnight."""
    turned = unwrapped(times)
    return np.asarray(turned - turned.min(), np.float64)


class Timing:
    """What the first volumes of one series, of one echo, tell of its timing together.

    Parameters
    ----------
    expected_s : float or None
        Repetition time of the settings: taken where the file's own cannot be.
    """

    def __init__(self, expected_s: float | None = None) -> None:
        self._expected_s = expected_s
        self._began_s: dict[int, float] = {}
        self._slice_times_s: list[NDArray[np.float64]] = []
        self._measured_s: float | None = None

    def learn(self, index: int, stored: StoredVolume) -> None:
        """Take note of a volume."""
        began_s = stored.began_s if stored.acquired_s is None else stored.acquired_s
        if began_s is not None and len(self._began_s) < _REMEMBERED:
            self._began_s.setdefault(index, began_s)
        if stored.slice_times_s is not None and len(self._slice_times_s) < _REMEMBERED:
            self._slice_times_s.append(stored.slice_times_s)

    def needs_more(self, stored: StoredVolume) -> bool:
        """Whether later volumes may yet repair what this one tells."""
        told = stored.t_r_s
        if told is None:
            return False
        asked = bool(self._began_s) and len(self._began_s) < 2
        if asked and (told < _NEEDS_PROOF_S or repetition_time(told, stored.data.shape[2])[0] is None):
            return True
        checked = self.checked(stored)
        return stored.slice_times_s is not None and checked.slice_times_s is None and len(self._slice_times_s) < 2

    def checked(self, stored: StoredVolume) -> StoredVolume:
        """Return a volume with the timing that can be trusted, and what was noticed."""
        notes, unknown = list(stored.notes), dict(stored.unknown)
        t_r_s, why = self._repetition_time(stored, notes)
        if why:
            unknown["t_r_s"] = why
        times = stored.slice_times_s
        if times is not None:
            times, why = slice_times(times, t_r_s)
            if times is not None and why:
                notes.append(why)
            elif times is None:
                unknown["slice_times_s"] = why
                times = self._of_others(stored, t_r_s)
                if times is not None:
                    notes.append(f"slice_times_s: those of other volumes of the series; its own: {why}")
        return dataclasses.replace(
            stored,
            t_r_s=t_r_s,
            t_r_measured=self._measured_s is not None,
            slice_times_s=times,
            acquired_s=self._after_midnight(stored.acquired_s),
            notes=tuple(notes),
            unknown=unknown,
        )

    def _repetition_time(self, stored: StoredVolume, notes: list[str]) -> tuple[float | None, str]:
        """Return the repetition time and why there is none; adds to the notes."""
        if stored.t_r_s is None:
            return None, ""
        n_slices = stored.data.shape[2]
        told_s, note = repetition_time(stored.t_r_s, n_slices)
        if self._measured_s is None:
            self._measured_s = self._measure(told_s, n_slices, notes)
        if self._measured_s is not None:
            if _differ(self._measured_s, stored.t_r_s):
                between = f"{self._measured_s:g} s between acquisition times, which is used"
                notes.append(f"t_r_s: repetition time of {stored.t_r_s:g} s in the file, {between}")
            return self._measured_s, ""
        default = stored.t_r_s == HEADER_DEFAULT_S and stored.origin.format.startswith("nifti")
        if default and self._expected_s is not None and self._expected_s != HEADER_DEFAULT_S:
            notes.append(f"t_r_s: {self._expected_s:g} s of the settings; the header's 1 s is a default of converters")
            return self._expected_s, ""
        if told_s is not None:
            notes += [note] if note else []
            if self._expected_s is not None and not math.isclose(told_s, self._expected_s, rel_tol=_AGREE):
                expected = f"expected {self._expected_s:g} s by the settings, got {told_s:g} s, which is used"
                notes.append(f"t_r_s: {IMPLAUSIBLE}{expected}")
            return told_s, ""
        if self._expected_s is not None:
            notes.append(f"t_r_s: {self._expected_s:g} s of the settings; in the file: {note}")
            return self._expected_s, ""
        if stored.origin.echo_planar is False:  # of no time series: told as it is
            notes.append(f"t_r_s: {note}")
            return stored.t_r_s, ""
        return None, f"{note}; set t_r_s in [scanner]"

    def _measure(self, told_s: float | None, n_slices: int, notes: list[str]) -> float | None:
        """Return the distance of the acquisition times where it, and not the header, must be right."""
        steps_s = self._steps_s()
        if not steps_s:
            return None
        middle_s = float(np.median(steps_s))
        regular = all(abs(step_s - middle_s) <= _REGULAR * middle_s + _ABSOLUTE_S for step_s in steps_s)
        if not regular or not plausible(middle_s, n_slices) or (told_s is not None and not _differ(middle_s, told_s)):
            return None
        mean_s = float(np.mean(steps_s))
        near_s = round(mean_s / _GRID_S) * _GRID_S
        found_s = round(near_s if abs(near_s - mean_s) <= _GRID_ERROR_S else mean_s, 3)
        if told_s is None or told_s < _NEEDS_PROOF_S:
            return found_s
        times = middle_s / told_s
        if round(times) > 1 and abs(times - round(times)) <= _REGULAR * times:
            notes.append(f"t_r_s: {IMPLAUSIBLE}{told_s:g} s in the file, {found_s:g} s between acquisition times")
            return None
        return found_s if len(steps_s) > 1 else None

    def _steps_s(self) -> list[float]:
        """Seconds between the starts of volumes that follow each other; none where the clock does not move."""
        known = sorted(self._began_s.items())
        pairs = itertools.pairwise(known)
        steps_s = [b_s - a_s for (i, a_s), (j, b_s) in pairs if j == i + 1]
        steps_s = [step_s + DAY_S if step_s < -DAY_S / 2 else step_s for step_s in steps_s]
        return steps_s if all(step_s > 0 for step_s in steps_s) else []

    def _after_midnight(self, acquired_s: float | None) -> float | None:
        """Return a time after midnight with the date of the day before as one of the next day."""
        if acquired_s is None or not self._began_s:
            return acquired_s
        first_s = self._began_s[min(self._began_s)]
        return acquired_s + DAY_S if acquired_s < first_s - DAY_S / 2 else acquired_s

    def _of_others(self, stored: StoredVolume, t_r_s: float | None) -> NDArray[np.float64] | None:
        for times in self._slice_times_s:
            if times.shape == (stored.data.shape[2],):
                found, note = slice_times(times, t_r_s)
                if found is not None and not note:
                    return found
        return None


def _differ(a_s: float, b_s: float) -> bool:
    return abs(a_s - b_s) > _RELATIVE * max(a_s, b_s) + _ABSOLUTE_S
