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
from rtdecode.estimate import Estimator
from rtdecode.process.recorded import Recorded, RecordedRun, numbered
from rtdecode.protocol_file import read_protocol
from rtdecode.records import (
    BetaUpdate,
    BundleRequest,
    Command,
    RunEnd,
    Skipped,
    TrialAmended,
    TrialCancelled,
    TrialEvent,
    TrialOverdue,
    Volume,
)
from rtdecode.session.entries import BundleEntry, read_inputs
from rtdecode.session.past import Past
from rtdecode.session.recording import PROTOCOL
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
    """Return how many runs of a session taught its later ones, before calibration was begun again.

    Raises
    ------
    SettingsError
        Its settings file is missing or no TOML, or its protocol is none.
    """
    path = folder / "settings.toml"
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("calibration", {})
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: expected the settings of the session: {error}"]) from None
    runs = int(section.get("runs", CalibrationSettings().runs))
    if (folder / PROTOCOL).is_file():
        runs = read_protocol(folder / PROTOCOL).calibration_runs
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
    for number, items in itertools.groupby(_in_order(past, run), lambda pair: pair[0]):
        if number not in lengths:
            continue
        yield RecordedRun(
            name=stem_name({**labels, "task": TASK, "run": f"{number:02d}"}),
            items=(_of(item, place, number) for _, item in items),
            announced=lengths[number],
        )
        place += 1


def _in_order(past: Past, run: int | None) -> Iterator[tuple[int, Recorded]]:
    """Give what the line took, each with its run: nothing twice, and nothing of a run that was over."""
    current, done = 0, 0
    told: dict[int, int | None] = {}
    waiting: dict[int, list[Recorded]] = defaultdict(list)
    between: list[Recorded] = []
    for item in past.inputs(0.0, run=run):
        volumes = told.get(current)
        closed = volumes is not None and done >= volumes
        match item:
            case RunEnd():
                told[item.run] = item.volumes
            case BundleRequest() | Command() if closed or not current:
                between.append(item)  # it holds from the next run on
            case BundleRequest() | Command():
                yield current, item
            case TrialEvent() | TrialAmended() | TrialCancelled() if item.run > current:
                waiting[item.run].append(item)
            case TrialEvent() | TrialAmended() | TrialCancelled() | TrialOverdue() if (
                item.run == current and not closed
            ):
                yield current, item
            case Volume() | Skipped():
                number, index = (
                    (item.run, item.volume) if isinstance(item, Skipped) else (item.stamp.run, item.stamp.volume)
                )
                if number < current or (number == current and closed):
                    continue
                if index is None or (number == current and index < done):
                    continue
                if number > current:
                    current = number
                    for one in (*between, *waiting.pop(number, ())):
                        yield current, one
                    between.clear()
                done = index + 1
                yield current, item


def _of(item: Recorded, run: int, was: int) -> Recorded:
    """Return what a session took in a run as of a run of another number."""
    match item:
        case Volume() | Skipped():
            return numbered(item, run)
        case BundleRequest():
            return replace(item, last_run=None if item.last_run is None else item.last_run + run - was)
        case Command():
            of = None if item.run is None else item.run + run - was
            return replace(item, run=of, last_run=None if item.last_run is None else item.last_run + run - was)
        case _:
            return replace(item, run=run)


def take(item: Recorded, estimator: Estimator, announced: list[TrialEvent]) -> list[BetaUpdate]:
    """Take what the experiment or operator said of a run, or the clock; return what that made final."""
    match item:
        case TrialEvent():
            announced.append(item)
            estimator.add_event(item)
        case TrialAmended() if estimator.trials.amend(item.event):
            announced[:] = [item.event if event.trial == item.trial else event for event in announced]
        case TrialCancelled() if estimator.trials.cancel(item.run, item.trial) is not None:
            announced[:] = [event for event in announced if event.trial != item.trial]
        case TrialOverdue():
            return estimator.give_up(item.run, item.trial)
        case BundleRequest() if item.last_run is not None:
            estimator.end_calibration(item.last_run)
        case Command(command="bad_run", run=int(run)):
            estimator.leave_out(run)
        case Command(command="recalibrate", last_run=int(last)):
            estimator.end_calibration(last, anew=True)
    return []


def _journal(folder: Path) -> Path:
    return folder / "journal" / "inputs.journal"
