"""Tables that come with a recorded run: BIDS events and motion."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.derivatives import EVENT_COLUMNS, MOTION_NAMES, NONE, read_table
from rtdecode.errors import SettingsError
from rtdecode.estimate.space import not_radians
from rtdecode.records import TrialEvent
from rtdecode.stimuli import is_baseline

MOTION_FORMATS = (
    "SPM: mm, then radians; .par of FSL: radians, then mm; .1D of AFNI: degrees, then mm; .tsv: named columns"
)
_AFNI, _DFILE_COLUMNS = "3dvolreg", 9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Trials of one run, by onset or, of a session's own table, as they were announced; and what was wrong with it."""

    trials: tuple[TrialEvent, ...]
    problems: tuple[str, ...]


def read_events(path: Path, run: int, trial_types: Sequence[str] = ()) -> Events:
    """Read BIDS events; rows that cannot be used are left out and told.

    Columns ``onset`` and ``duration`` (seconds) are needed, ``trial_type`` and ``stim_id`` (or ``stim_file``)
    are kept. In the table of a session every row is a trial, with its name.

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
        rows, columns = read_table(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError([f"--events: expected a tab-separated table, got {path}: {error}"]) from None
    missing = {"onset", "duration"} - set(columns)
    if missing:
        raise SettingsError(
            [f"--events: expected columns onset and duration, got {', '.join(columns) or 'none'}: {path}"]
        )
    names = {_text(row, "trial") for row in rows} if columns == EVENT_COLUMNS else {None}
    own = None not in names and len(names) == len(rows)
    trials: list[TrialEvent] = []
    chosen, problems = _chosen(path, rows, trial_types, everything=own)
    for number, row in chosen:
        where = f"{path.name} row {number}"
        onset_s = _seconds(row, "onset", where, problems)
        duration_s = _seconds(row, "duration", where, problems)
        if onset_s is not None and duration_s is not None:
            trials.append(
                TrialEvent(
                    run=run,
                    trial=row["trial"].strip() if own else f"r{run:02d}t{number:03d}",
                    onset_s=onset_s,
                    duration_s=duration_s,
                    stimulus=_text(row, "stim_id") or _text(row, "stim_file"),
                    condition=_text(row, "trial_type"),
                )
            )
    if not trials:
        raise SettingsError([f"--events: expected trials, got none that can be used: {path}", *problems])
    if not own:
        trials.sort(key=lambda trial: trial.onset_s)
    return Events(trials=tuple(trials), problems=tuple(problems))


def told_apart(tables: Sequence[Events]) -> list[Events]:
    """Give trials names of their own where tables of several sessions have the same ones."""
    names = [trial.trial for table in tables for trial in table.trials]
    if len(set(names)) == len(names):
        return list(tables)
    return [
        replace(
            table,
            trials=tuple(
                replace(t, trial=f"r{t.run:02d}t{place:03d}") for place, t in enumerate(table.trials, start=1)
            ),
        )
        for table in tables
    ]


def _chosen(
    path: Path, rows: Sequence[dict[str, str]], trial_types: Sequence[str], *, everything: bool
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
    elif everything:
        wanted = set(kinds)
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
    return None if text in NONE else text


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
            motion = np.array([[float(row[name]) for name in MOTION_NAMES] for row in read_table(path)[0]], np.float64)
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
