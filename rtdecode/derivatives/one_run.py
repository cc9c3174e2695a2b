"""The derivatives of one run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rtdecode.derivatives.columns import (
    EVENTS,
    MOTION,
    MOTION_NAMES,
    QUALITY,
    TRIALS,
    Columns,
    GrowingTable,
    regions,
    rounded,
    write_json,
)
from rtdecode.derivatives.images import Voxels, write_maps
from rtdecode.derivatives.names import Guard, file_path
from rtdecode.records import BetaUpdate, RegisteredVolume, TrialEvent
from rtdecode.settings import EstimateSettings

_ALL_OF_IT = 0.95
_MOTION = (
    "Rigid motion that takes RAS mm of the reference to RAS mm of each volume: x, y and z rotations in this order "
    "about the centre (RotationCentre_mm, RAS), then the translations; row i is volume i, n/a where there is none"
)
_BETAS = (
    "Causal single-trial response estimates; volume i belongs to row i of the events table and is nan where the trial "
    "is invalid"
)


class RunDerivatives:
    """Tables of a run, which grow with it on the disk, and what is written at its end.

    Parameters
    ----------
    stem : Path
        Folder and beginning of the names of the run's files.
    guard : callable
        Returns a context manager in which the file that it is given is written.
    """

    def __init__(self, stem: Path, guard: Guard = nullcontext) -> None:
        self._stem = stem
        self._guard = guard
        self._seen: list[TrialEvent] = []
        self._told: list[list[object]] = []  # rows of the table of trials
        self._bad: str | None = None
        self._used = 0
        self._problems: list[str] = []
        self._events = self._table("events", EVENTS)
        self._motion = self._table("desc-motion_timeseries", MOTION)
        self._quality = self._table("desc-quality_timeseries", QUALITY)
        self._roi = self._table("desc-roi_timeseries", {})
        self._regions: tuple[str, ...] = ()
        self._trials = self._table("desc-trial_events", TRIALS)

    def event(self, event: TrialEvent) -> None:
        """Add a trial as it was announced."""
        self._seen.append(event)
        self._events.add(_shown(event))

    def changed(self, trial: str, event: TrialEvent | None) -> None:
        """Tell a trial as it was corrected; None: it was withdrawn, and is left out."""
        self._seen = [one for one in (event if seen.trial == trial else seen for seen in self._seen) if one is not None]
        self._events.replace([_shown(seen) for seen in self._seen])

    def mark_bad(self, reason: str) -> None:
        """Say of every trial of the run that it does not count; the maps stay."""
        self._bad = reason
        if self._told:
            self._trials.replace([self._judged(told) for told in self._told])
            self._trials.close()

    def _judged(self, told: list[object]) -> list[object]:
        return told if self._bad is None else [*told[:-1], told[-1] or self._bad]

    def volume(self, volume: RegisteredVolume, *, problems: Sequence[str] = ()) -> None:
        """Add a usable volume; those before it that nothing was told of are missing.

        Parameters
        ----------
        volume : RegisteredVolume
        problems : sequence of str
            What its reader noticed but could live with.
        """
        index = volume.stamp.volume
        self._missing_before(index)
        signals = _signals(volume)
        if not self._regions and signals:
            self._regions = tuple(signals)
            self._roi = self._table("desc-roi_timeseries", regions(self._regions))
            for _ in range(index):
                self._roi.add([None] * len(self._regions))
        self._used += 1
        self._problems += problems
        measured = [rounded(x) for x in (volume.dvars, volume.tsnr, volume.fit)]
        self._row(
            [rounded(x) for x in (*volume.motion.tolist(), volume.fd_mm)],
            [index, *measured, int(volume.censored), None],
            [rounded(signals[name]) for name in self._regions],
        )

    def skipped(self, index: int, reason: str) -> None:
        """Add a volume that will not come or cannot be used, and why."""
        self._missing_before(index)
        self._row([None] * len(MOTION), [index, None, None, None, None, reason], [None] * len(self._regions))

    def finish(
        self,
        finals: Sequence[BetaUpdate],
        *,
        t_r_s: float | None,
        settings: EstimateSettings,
        space: Voxels | None,
        figures: Mapping[str, Any] | None,
        problems: Sequence[str] = (),
    ) -> None:
        """Write what is known at the end of the run.

        Parameters
        ----------
        finals : sequence of BetaUpdate
            The last of each trial, invalid ones as well.
        t_r_s : float or None
            Repetition time, seconds; None if no volume has told.
        settings : EstimateSettings
            As used.
        space : Voxels or None
            None if the session has no usable volume yet.
        figures : mapping of str to number or list, or None
            Of the usable volumes, for the summary; None if there are none.
        problems : sequence of str
            What was wrong with other inputs and could be lived with.
        """
        length = len(self._quality)
        self.close()
        if length:
            self._write_json("desc-motion_timeseries.json", _motion_sidecar(t_r_s, space))
        finals = sorted(finals, key=lambda beta: (beta.event.onset_s, beta.event.trial))
        if figures is not None and t_r_s is not None:
            told = dict.fromkeys((*problems, *self._problems, *trial_problems(self._seen, length * t_r_s)))
            summary = {
                "Source": self._stem.name,
                "RepetitionTime": t_r_s,
                "Volumes": length,
                "VolumesSkipped": length - self._used,
                **figures,
                "Trials": len(finals),
                "TrialsInvalid": {b.event.trial: b.invalid for b in finals if b.invalid is not None},
                **({} if self._bad is None else {"MarkedBad": self._bad}),
                "Problems": list(told),
            }
            self._write_json("desc-quality_summary.json", summary)
        for beta in finals:
            self._add_trial(_estimate(beta))
        self._estimates("trial", self._trials, finals, settings, space)

    def revisions(self, betas: Sequence[BetaUpdate], settings: EstimateSettings, space: Voxels) -> None:
        """Write every estimate of every trial, in the order given."""
        table = self._table("desc-revision_events", TRIALS)
        for beta in betas:
            table.add(_estimate(beta))
        self._estimates("revision", table, betas, settings, space)

    def no_result(self, event: TrialEvent, reason: str) -> None:
        """Mark a trial that no volume can tell of: its run is over, or was never scanned. It has no map."""
        self._add_trial([*_shown(event), None, 1, None, None, reason])
        self._trials.close()

    def _add_trial(self, told: list[object]) -> None:
        self._told.append(told)
        self._trials.add(self._judged(told))

    def close(self) -> None:
        """Close the tables that grow with the run."""
        for table in (self._events, self._motion, self._quality, self._roi):
            table.close()

    def _table(self, suffix: str, columns: Columns) -> GrowingTable:
        return GrowingTable(file_path(self._stem, f"{suffix}.tsv"), columns, self._guard)

    def _missing_before(self, index: int) -> None:
        for lost in range(len(self._quality), index):
            self.skipped(lost, "missing")

    def _row(self, motion: Sequence[object], quality: Sequence[object], regions: Sequence[object]) -> None:
        self._motion.add(motion)
        self._quality.add(quality)
        if self._regions:
            self._roi.add(regions)

    def _write_json(self, suffix: str, content: dict[str, Any]) -> None:
        with self._guard(file_path(self._stem, suffix)) as path:
            write_json(path, content)

    def _estimates(
        self,
        description: str,
        table: GrowingTable,
        betas: Sequence[BetaUpdate],
        settings: EstimateSettings,
        space: Voxels | None,
    ) -> None:
        if not betas:
            return
        table.close()
        if space is None:
            return
        maps = {"betas": [beta.beta for beta in betas]}
        errors = [beta.standard_error for beta in betas if beta.standard_error is not None]
        if len(errors) == len(betas):
            maps["stderr"] = errors
        for name, values in maps.items():
            with self._guard(file_path(self._stem, f"desc-{description}_{name}.nii.gz")) as path:
                write_maps(path, values, space)
        sidecar = {
            "Description": _BETAS,
            "Units": "percent signal change",
            "Trials": [beta.event.trial for beta in betas],
            "TimeAfterOnset_s": [beta.delay_s for beta in betas],
            "Shrinkage": settings.shrinkage,
            "HRF": settings.hrf,
            "Confounds": settings.confounds,
        }
        self._write_json(f"desc-{description}_betas.json", sidecar)


def _signals(volume: RegisteredVolume) -> dict[str, float]:
    """Return the values of regions and of parcels, these named ``image.label``."""
    parcels = {f"{name}.{label}": value for name, of in volume.parcels.items() for label, value in of.items()}
    return {**volume.regions, **parcels}


def trial_problems(events: Sequence[TrialEvent], end_s: float) -> list[str]:
    """Say what is doubtful about the trials of a run.

    Parameters
    ----------
    events : sequence of TrialEvent
    end_s : float
        End of the run after the start of its volume 0, seconds.
    """
    ordered = sorted(events, key=lambda event: event.onset_s)
    problems = []
    for before, after in itertools.pairwise(ordered):
        stop_s = before.onset_s + before.duration_s
        if after.onset_s < stop_s - 1e-6:
            problems.append(
                f"trial {after.trial}: onset: expected at least {stop_s:g} s, the end of trial {before.trial}, "
                f"got {after.onset_s:g} s: both are fitted as overlapping"
            )
    problems += [
        f"trial {event.trial}: onset: expected before the end of the run at {end_s:g} s, got {event.onset_s:g} s"
        for event in ordered
        if event.onset_s >= end_s
    ]
    filled_s, until_s = 0.0, 0.0
    for event in ordered:
        stop_s = min(event.onset_s + event.duration_s, end_s)
        filled_s += max(stop_s - max(event.onset_s, until_s), 0.0)
        until_s = max(until_s, stop_s)
    if filled_s >= _ALL_OF_IT * end_s:
        problems.append(
            "events: expected a baseline between trials, got trials in all of the time: announce, or choose by "
            "--trial-types, what shows a stimulus"
        )
    return problems


def _shown(event: TrialEvent) -> list[object]:
    return [float(event.onset_s), float(event.duration_s), event.condition, event.trial, event.stimulus]


def _estimate(beta: BetaUpdate) -> list[object]:
    last = beta.stamp.volume
    told = [beta.revision, int(beta.final), rounded(beta.delay_s), last if last >= 0 else None, beta.invalid]
    return [*_shown(beta.event), *told]


def _motion_sidecar(t_r_s: float | None, space: Voxels | None) -> dict[str, Any]:
    columns = {name: dict(told) for name, told in MOTION.items()}
    if space is not None and space.centre_mm is not None:
        for name in MOTION_NAMES[3:]:
            columns[name]["RotationCentre_mm"] = space.centre_mm.tolist()
    return {"Description": _MOTION, **({} if t_r_s is None else {"RepetitionTime": t_r_s}), **columns}
