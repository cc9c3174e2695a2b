"""Events of a protocol as BIDS has them, and conditions as PsychoPy reads them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rtdecode.derivatives import run_stem
from rtdecode.derivatives.columns import EVENTS, GrowingTable
from rtdecode.derivatives.names import file_path, whole
from rtdecode.protocols.design import LaidOut

CONDITIONS = ("run", "block", "trial", "condition", "stimulus", "onset_s", "duration_s", "feedback")
"""Columns of a conditions file: names that PsychoPy makes variables of."""


def write_events(runs: Sequence[LaidOut], out: Path, entities: dict[str, str]) -> list[Path]:
    """Write ``events.tsv`` with its sidecar for every run; return the tables.

    Parameters
    ----------
    runs : sequence of LaidOut
    out : Path
        BIDS dataset.
    entities : dict of str to str
        BIDS labels ``sub``, ``task`` and perhaps ``ses``.
    """
    written = []
    for run in runs:
        stem = run_stem(out, {**entities, "run": f"{run.run:02d}"})
        stem.parent.mkdir(parents=True, exist_ok=True)
        path = file_path(stem, "events.tsv")
        table = GrowingTable(path, EVENTS)
        for row in run.rows:
            table.add([row.onset_s, row.duration_s, row.condition, row.trial, row.stimulus])
        table.close()
        written.append(path)
    return written


def write_conditions(runs: Sequence[LaidOut], path: Path) -> None:
    """Write all rows of all runs as a conditions file (CSV)."""
    with whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(CONDITIONS)
        for run in runs:
            for row in run.rows:
                table.writerow(
                    [
                        run.run, row.block, row.trial or "", row.condition, row.stimulus or "", row.onset_s,
                        row.duration_s, row.feedback,
                    ]
                )  # fmt: skip
