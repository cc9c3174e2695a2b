"""Tables that come with a recorded run: BIDS events and motion."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import SettingsError
from rtdecode.records import TrialEvent

MOTION_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_ABSENT = ("", "n/a", "N/A", "nan")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Trials of one run, by onset, and what was wrong with the table."""

    trials: tuple[TrialEvent, ...]
    problems: tuple[str, ...]


def read_events(path: Path, run: int) -> Events:
    """Read BIDS events; rows that cannot be used are left out and told.

    Columns ``onset`` and ``duration`` (seconds) are needed, ``trial_type`` and ``stim_id`` (or ``stim_file``)
    are kept.

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
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
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

    A ``.tsv`` file names its columns (``trans_x`` ... ``rot_z``, as fMRIPrep's confounds do); a ``.par`` file is
    FSL's, rotations first; any other holds six columns of numbers, translations first.

    Returns
    -------
    array of shape (t, 6), float64
        Translations in mm, rotations in radians.

    Raises
    ------
    SettingsError
        If the file is missing or does not hold six columns of numbers.
    """
    try:
        if path.suffix == ".tsv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            motion = np.array([[float(row[name]) for name in MOTION_NAMES] for row in rows], np.float64)
        else:
            motion = np.loadtxt(path, ndmin=2, dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError([f"--motion: expected {', '.join(MOTION_NAMES)} in {path}, got: {error}"]) from None
    if motion.ndim != 2 or motion.shape[1] < 6 or not np.isfinite(motion[:, :6]).all():
        raise SettingsError([f"--motion: expected six columns of finite numbers in {path}, got shape {motion.shape}"])
    order = [3, 4, 5, 0, 1, 2] if path.suffix == ".par" else [0, 1, 2, 3, 4, 5]
    return motion[:, order]
