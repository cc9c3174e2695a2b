"""Tables that come with a recorded run: BIDS events and motion."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import SettingsError
from rtdecode.estimate.space import not_radians
from rtdecode.records import TrialEvent
from rtdecode.stimuli import is_baseline

MOTION_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
MOTION_FORMATS = (
    "SPM: mm, then radians; .par of FSL: radians, then mm; .1D of AFNI: degrees, then mm; .tsv: named columns"
)
_AFNI, _DFILE_COLUMNS = "3dvolreg", 9
_ABSENT = ("", "n/a", "N/A", "nan")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Trials of one run, by onset, and what was wrong with the table."""

    trials: tuple[TrialEvent, ...]
    problems: tuple[str, ...]


def read_events(path: Path, run: int, trial_types: Sequence[str] = ()) -> Events:
    """Read BIDS events; rows that cannot be used are left out and told.

    Columns ``onset`` and ``duration`` (seconds) are needed, ``trial_type`` and ``stim_id`` (or ``stim_file``)
    are kept.

    Parameters
    ----------
    path : Path
    run : int
    trial_types : sequence of str
        Rows of these are the trials; none: all but those of the baseline and of answers.

    Raises
    ------
    SettingsError
        If the file or one of its needed columns is missing, or no row can be used.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            rows, columns = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError([f"--events: expected a tab-separated table, got {path}: {error}"]) from None
    missing = {"onset", "duration"} - set(columns)
    if missing:
        raise SettingsError(
            [f"--events: expected columns onset and duration, got {', '.join(columns) or 'none'}: {path}"]
        )
    trials: list[TrialEvent] = []
    chosen, problems = _chosen(path, rows, trial_types)
    for number, row in chosen:
        where = f"{path.name} row {number}"
        onset_s = _seconds(row, "onset", where, problems)
        duration_s = _seconds(row, "duration", where, problems)
        if onset_s is not None and duration_s is not None:
            trials.append(
                TrialEvent(
                    run=run,
                    trial=f"r{run:02d}t{number:03d}",
                    onset_s=onset_s,
                    duration_s=duration_s,
                    stimulus=_text(row, "stim_id") or _text(row, "stim_file"),
                    condition=_text(row, "trial_type"),
                )
            )
    if not trials:
        raise SettingsError([f"--events: expected trials, got none that can be used: {path}", *problems])
    trials.sort(key=lambda trial: trial.onset_s)
    for before, after in itertools.pairwise(trials):
        end_s = before.onset_s + before.duration_s
        if after.onset_s < end_s - 1e-6:
            problems.append(
                f"{path.name}: trial {after.trial}: onset: expected at least {end_s:g} s, the end of trial "
                f"{before.trial}, got {after.onset_s:g} s: both are fitted as overlapping"
            )
    return Events(trials=tuple(trials), problems=tuple(problems))


def _chosen(
    path: Path, rows: Sequence[dict[str, str]], trial_types: Sequence[str]
) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Return the rows that are trials, with their numbers from 1, and what was left out."""
    numbered = list(enumerate(rows, start=1))
    kinds = Counter(_text(row, "trial_type") or "n/a" for row in rows)
    if trial_types:
        absent = [name for name in trial_types if name not in kinds]
        if absent:
            known = ", ".join(kinds)
            raise SettingsError([f"--trial-types: expected some of {known}, got {', '.join(absent)}: {path}"])
        wanted = set(trial_types)
    else:
        wanted = {name for name in kinds if not is_baseline(name)}
        if not wanted:
            return (numbered, []) if set(kinds) == {"n/a"} else ([], [f"{path.name}: only {_counted(kinds, kinds)}"])
    left_out = [name for name in kinds if name not in wanted]
    why = (
        "not among --trial-types" if trial_types else "baseline or answers, no stimuli; --trial-types chooses otherwise"
    )
    problems = [f"{path.name}: left out as {why}: {_counted(kinds, left_out)}"] if left_out else []
    return [(number, row) for number, row in numbered if (_text(row, "trial_type") or "n/a") in wanted], problems


def _counted(kinds: Counter[str], names: Iterable[str]) -> str:
    return ", ".join(f"{kinds[name]} rows of {name}" for name in names)


def _seconds(row: dict[str, str], column: str, where: str, problems: list[str]) -> float | None:
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and value >= 0:
        return value
    what = "seconds after the start of the run" if column == "onset" else "seconds, not negative"
    problems.append(f"{where}: {column}: expected {what}, got {text or 'nothing'}: the trial is left out")
    return None


def _text(row: dict[str, str], column: str) -> str | None:
    text = (row.get(column) or "").strip()
    return None if text in _ABSENT else text


def read_motion_table(path: Path) -> NDArray[np.float64]:
    """Read motion parameters of a series that is realigned already.

    A ``.tsv`` file names its columns (``trans_x`` ... ``rot_z``, as fMRIPrep's confounds do); a ``.par`` file is FSL's,
    rotations first; a ``.1D`` file, or one that names 3dvolreg, is AFNI's: roll, pitch and yaw in degrees, then the
    shifts dS, dL and dP (after the volume's number, of -dfile). Any other holds six columns of numbers, as SPM's rp
    files do. Of AFNI's, the signs are kept: neither framewise displacement nor the confounds depend on them.

    Returns
    -------
    array of shape (t, 6), float64
        Translations in mm, rotations in radians.

    Raises
    ------
    SettingsError
        If the file is missing or does not hold six columns of numbers that can be such.
    """
    try:
        if path.suffix == ".tsv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            motion = np.array([[float(row[name]) for name in MOTION_NAMES] for row in rows], np.float64)
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
            motion = np.loadtxt(io.StringIO(text), ndmin=2, dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError([f"--motion: expected {', '.join(MOTION_NAMES)} in {path}, got: {error}"]) from None
    if motion.ndim != 2 or motion.shape[1] < 6 or not np.isfinite(motion).all():
        raise SettingsError([f"--motion: expected six columns of finite numbers in {path}, got shape {motion.shape}"])
    if path.suffix.lower() == ".1d" or (path.suffix != ".tsv" and _AFNI in text.lower()):
        motion = _of_afni(path, motion)
    elif path.suffix.lower() == ".par":
        motion = motion[:, [3, 4, 5, 0, 1, 2]]
    if (problem := not_radians(motion[:, 3:6])) is not None:
        raise SettingsError([f"--motion: {problem} ({MOTION_FORMATS}): {path}"])
    return motion[:, :6]


def _of_afni(path: Path, motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return motion as 3dvolreg writes it with -1Dfile (six columns) or -dfile (nine) in the project's order."""
    if motion.shape[1] == _DFILE_COLUMNS:
        motion = motion[:, 1:7]
    if motion.shape[1] != len(MOTION_NAMES):
        got = f"{motion.shape[1]} columns"
        raise SettingsError([f"--motion: expected roll pitch yaw dS dL dP of AFNI's -1Dfile in {path}, got {got}"])
    roll, pitch, yaw, superior, left, posterior = motion.T
    return np.column_stack([left, posterior, superior, *np.deg2rad([pitch, yaw, roll])])
