"""Runs of a recorded session, as its journal keeps them: every volume to the last digit, and what was missing."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rtdecode.derivatives import TASK, stem_name
from rtdecode.errors import SettingsError
from rtdecode.process.recorded import RecordedRun, numbered
from rtdecode.records import RunEnd, Skipped, TrialEvent, Volume
from rtdecode.session.entries import BundleEntry, read_inputs
from rtdecode.session.past import Past
from rtdecode.settings import CalibrationSettings

_RUN = re.compile(r"run-(\d+)")


def session_of(path: Path) -> tuple[Path, int | None] | None:
    """Return the session folder that a path is, or keeps a run of, and that run; None if it is neither."""
    path = path.resolve()
    if _journal(path).is_file():
        return path, None
    named = _RUN.fullmatch(path.name)
    if named is None or len(path.parents) < 3:
        return None
    folder = path.parents[2]
    kept = path.parent == folder / "journal" / "volumes" and _journal(folder).is_file()
    return (folder, int(named[1])) if kept else None


def calibration_runs(folder: Path) -> int:
    """Return how many runs of a session taught its later ones.

    Raises
    ------
    SettingsError
        Its settings file is missing or no TOML.
    """
    path = folder / "settings.toml"
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("calibration", {})
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: expected the settings of the session: {error}"]) from None
    runs = int(section.get("runs", CalibrationSettings().runs))
    ends = [entry.last_run for entry in read_inputs(_journal(folder)) if isinstance(entry, BundleEntry)]
    return min([runs, *(run for run in ends if run is not None)])


def session_runs(folder: Path, run: int | None, *, first_run: int) -> Iterator[RecordedRun]:
    """Open a session; its trials are among the items, where they were announced.

    Parameters
    ----------
    folder : Path
        Session folder.
    run : int or None
        The only run that is wanted.
    first_run : int
        Number of the first run; further ones count on.

    Raises
    ------
    SettingsError
        No volume of a run was kept.
    JournalError
        The journal is damaged.
    """
    past = Past(folder, leave_out=True)
    lengths = {known.number: known.next_index for known in past.runs() if run in (None, known.number)}
    if not lengths:
        which = "a run" if run is None else f"run {run}"
        raise SettingsError([f"BOLD: expected volumes of {which} in the journal of {folder}, found none"])
    labels = next(({"sub": path.parent.name[4:], "ses": path.name[4:]} for path in folder.glob("sub-*/ses-*")), {})
    place = first_run
    for number, items in itertools.groupby(_in_order(past, run), _run_of):
        if number not in lengths:
            continue
        yield RecordedRun(
            name=stem_name({**labels, "task": TASK, "run": f"{number:02d}"}),
            items=(_of(item, place) for item in items),
            announced=lengths[number],
        )
        place += 1


def _in_order(past: Past, run: int | None) -> Iterator[Volume | Skipped | TrialEvent]:
    """Give what the line took, run by run: nothing twice, and nothing of a run that was over."""
    current, done = 0, 0
    told: dict[int, int | None] = {}
    waiting: dict[int, list[TrialEvent]] = defaultdict(list)
    for item in past.inputs(0.0, run=run):
        match item:
            case RunEnd():
                told[item.run] = item.volumes
            case TrialEvent() if item.run > current:
                waiting[item.run].append(item)
            case TrialEvent() | Volume() | Skipped():
                volumes, number = told.get(current), _run_of(item)
                over = number == current and volumes is not None and done >= volumes
                if number < current or over:
                    continue
                if isinstance(item, TrialEvent):
                    yield item
                    continue
                index = item.volume if isinstance(item, Skipped) else item.stamp.volume
                if index is None or (number == current and index < done):
                    continue
                if number > current:
                    current = number
                    yield from waiting.pop(number, ())
                done = index + 1
                yield item


def _run_of(item: Volume | Skipped | TrialEvent) -> int:
    return item.stamp.run if isinstance(item, Volume) else item.run


def _of(item: Volume | Skipped | TrialEvent, run: int) -> Volume | Skipped | TrialEvent:
    if isinstance(item, TrialEvent):
        return replace(item, run=run)
    return numbered(item, run)


def _journal(folder: Path) -> Path:
    return folder / "journal" / "inputs.journal"
