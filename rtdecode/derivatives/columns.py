"""Columns of all tables, and how they are written and read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from rtdecode import decoded
from rtdecode.derivatives.names import Guard, whole

MISSING = "n/a"
NONE = ("", "n/a", "N/A", "nan")
"""What stands for a missing value in tables of whatever origin."""
Columns = Mapping[str, Mapping[str, Any]]
"""Columns of a table and what its sidecar tells of each."""

MOTION_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
EVENTS: Columns = {
    "onset": {
        "Description": "Start of the stimulus after the start of acquisition of the run's volume 0",
        "Units": "s",
    },
    "duration": {"Description": "Of the stimulus", "Units": "s"},
    "trial_type": {"Description": "Condition, where the experiment names it"},
    "trial": {"Description": "Name of the trial, which no other of the session has"},
    "stim_id": {"Description": "Stimulus, where the experiment names it"},
}
EVENT_COLUMNS = tuple(EVENTS)
MOTION: Columns = {
    **{name: {"Units": "mm"} for name in MOTION_NAMES[:3]},
    **{name: {"Units": "rad"} for name in MOTION_NAMES[3:]},
    "framewise_displacement": {"Units": "mm", "Description": "Power et al. 2012, 50 mm; 0 for the first volume"},
}
QUALITY: Columns = {
    "volume": {"Description": "Index in the run, from 0 after dummies"},
    "dvars": {
        "Description": "Root mean square over the brain mask of the change from the volume before; 0 for the first",
        "Units": "percent",
    },
    "tsnr": {"Description": "Median over the brain mask of mean / standard deviation of the run so far"},
    "fit": {"Description": "Correlation of the registered volume with the reference"},
    "censored": {"Description": "Whether it moved too much to be used", "Levels": {"0": "used", "1": "left out"}},
    "skipped": {"Description": "Why there is no usable volume"},
}
TRIALS: Columns = {
    **EVENTS,
    "revision": {"Description": "Counts the estimates of the trial, from 0"},
    "final": {"Description": "Whether it is the trial's last estimate", "Levels": {"0": "no", "1": "yes"}},
    "time_after_onset": {"Description": "End of the last volume used, after the trial's onset", "Units": "s"},
    "volume": {"Description": "Index of the last volume used"},
    "invalid": {"Description": "Why it does not count; its map is nan where there is no estimate"},
}
DECODED: Columns = {
    **EVENTS,
    **{
        name: {"Description": note.what, **({} if note.units is None else {"Units": note.units})}
        for name, note in decoded.columns().items()
    },
    "revisions": {"Description": "Number of estimates of the trial"},
    "recon": {"Description": "Decoded picture, path in the session folder"},
    "latency_ms": {"Description": "From the volume's file to the last result", "Units": "ms"},
}
DECODED_COLUMNS = tuple(DECODED)


def regions(names: Sequence[str]) -> Columns:
    """Return the columns of the table of regions and parcels."""
    return {name: {"Units": "percent signal change"} for name in names}


def rounded(value: float) -> str | None:
    """Return nine digits of a measured value; None where it is none."""
    return f"{value:.9g}" if math.isfinite(value) else None


def line(values: Sequence[object]) -> str:
    """Return one row of a table: None is missing, a text keeps to its cell, a number keeps all its digits."""
    texts = (MISSING if value is None else " ".join(str(value).split()) for value in values)
    return "\t".join(text or MISSING for text in texts) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sidecar or summary."""
    with whole(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_table(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Return the rows of a table, each by column, and its columns.

    Raises
    ------
    OSError, UnicodeDecodeError, csv.Error
        It cannot be read as one.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        return list(table), tuple(table.fieldnames or ())


class GrowingTable:
    """A table that grows row by row on the disk, with its sidecar.

    What the disk refuses is written with the next row that it takes, from the beginning.

    Parameters
    ----------
    path : Path
        Ends in ``.tsv``; replaced by the first row.
    columns : Columns
    guard : Guard
    """

    def __init__(self, path: Path, columns: Columns, guard: Guard = nullcontext) -> None:
        self._path = path
        self._columns = columns
        self._guard = guard
        self._rows: list[str] = []
        self._file: TextIO | None = None
        self._behind = False  # the disk has not taken all rows

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, values: Sequence[object]) -> None:
        """Write one more row."""
        self._rows.append(line(values))
        self._behind = True
        with self._guard(self._path):
            if self._file is None:
                self._begin()
            else:
                self._write(self._file, self._rows[-1:])

    def replace(self, rows: Sequence[Sequence[object]]) -> None:
        """Write the table anew with other rows."""
        self._rows = [line(values) for values in rows]
        self._behind = True
        with self._guard(self._path):
            if self._file is not None:
                file, self._file = self._file, None
                file.close()
            self._begin()

    def close(self) -> None:
        """Leave a whole table, also where the disk has refused rows; one more row opens it again."""
        with self._guard(self._path):
            if self._behind:
                self._begin()
            if self._file is not None:
                file, self._file = self._file, None
                file.close()

    def _begin(self) -> None:
        write_json(self._path.with_suffix(".json"), self._columns)
        file = self._path.open("w", encoding="utf-8", buffering=1)
        self._write(file, [line([*self._columns]), *self._rows])

    def _write(self, file: TextIO, lines: list[str]) -> None:
        self._file = None
        try:
            file.writelines(lines)
        except OSError:
            with suppress(OSError):
                file.close()
            raise
        self._file, self._behind = file, False
