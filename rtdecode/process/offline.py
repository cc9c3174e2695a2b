"""Recorded runs through the online estimator, volume by volume."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rtdecode.derivatives import trial_problems
from rtdecode.errors import SettingsError, VolumeError
from rtdecode.estimate import Estimator
from rtdecode.estimate.calibrated import open_calibrated
from rtdecode.estimate.inputs import T_R_TOLERANCE_S, scaled
from rtdecode.estimate.report import DesignMatrix
from rtdecode.packs import open_participant
from rtdecode.process.kept_runs import calibration_runs, session_of, session_runs, take
from rtdecode.process.recorded import Recorded, RecordedRun, read_runs
from rtdecode.process.tables import Events, read_events, read_motion_table, told_apart
from rtdecode.records import (
    BetaUpdate,
    BundleRequest,
    Command,
    RegisteredVolume,
    Skipped,
    TrialEvent,
    Volume,
)
from rtdecode.settings import EstimateSettings

_log = logging.getLogger(__name__)
_SESSION = "process"
_AFTER_STIMULUS_S = 8.0
_TOLD = 5

Motion = Literal["auto", "none"] | Path | Sequence[Path]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProcessedRun:
    """What one run gave.

    Attributes
    ----------
    run : int
        From 1, in the order given.
    name : str
        Of the file or folder.
    t_r_s : float
        Repetition time, seconds.
    volumes : tuple of RegisteredVolume
        Those that could be used.
    skipped : tuple of Skipped
        Those that could not, and why.
    events : tuple of TrialEvent
        Trials, as they were announced or listed.
    betas : tuple of BetaUpdate
        Every revision, in the order that they became ready.
    problems : tuple of str
        What was wrong and could be lived with.
    design : DesignMatrix or None
        The model at the end of the run, without trials None.
    """

    run: int
    name: str
    t_r_s: float
    volumes: tuple[RegisteredVolume, ...]
    skipped: tuple[Skipped, ...]
    events: tuple[TrialEvent, ...]
    betas: tuple[BetaUpdate, ...]
    problems: tuple[str, ...]
    design: DesignMatrix | None

    @property
    def length(self) -> int:
        """Volumes of the run, skipped ones included."""
        indices = [v.stamp.volume for v in self.volumes] + [s.volume for s in self.skipped if s.volume is not None]
        return max(indices) + 1

    @property
    def finals(self) -> tuple[BetaUpdate, ...]:
        """Final beta of each trial, by onset."""
        return tuple(sorted((b for b in self.betas if b.final), key=lambda b: (b.event.onset_s, b.event.trial)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Processed:
    """What all runs gave.

    Attributes
    ----------
    runs : tuple of ProcessedRun
    reference : array of shape (i, j, k), float32
        Volume that all others were registered to.
    affine : array of shape (4, 4), float64
        Its voxel indices to RAS mm.
    mask : array of shape (i, j, k), bool
        Its voxels in C order are those of the betas.
    centre_mm : array of shape (3,), float64, or None
        Point that the rotations turn about, RAS mm; None without registration.
    settings : EstimateSettings
        As used.
    first : array of shape (i, j, k), float32, or None
        With a bundle, the first usable volume brought to its reference.
    """

    runs: tuple[ProcessedRun, ...]
    reference: NDArray[np.float32]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    centre_mm: NDArray[np.float64] | None
    settings: EstimateSettings
    first: NDArray[np.float32] | None = None


def process_runs(
    bold: Path | Sequence[Path],
    *,
    events: Path | Sequence[Path] = (),
    trial_types: Sequence[str] = (),
    motion: Motion = "auto",
    bundle: Path | None = None,
    settings: EstimateSettings | None = None,
    t_r_s: float | None = None,
    final_at_s: float | None = None,
    every_volume: bool = False,
    standard_errors: bool = False,
    regions: Sequence[Path] = (),
    mask: Path | None = None,
    entities: Mapping[str, str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Processed:
    """Run recorded series through the online estimator, as if each volume had just come from the scanner.

    Parameters
    ----------
    bold : Path or sequence of Path
        4-D NIfTI files or folders of volumes (DICOM, 3-D NIfTI); several are runs of one session, in order, and
        earlier ones teach the priors of later ones. A session folder, or folders of runs in its ``journal/volumes``,
        are read from its journal: with the settings of the session, its files come out again.
    events : Path or sequence of Path
        BIDS events, one table a run; none: those of the journal, elsewhere motion and quality only.
    trial_types : sequence of str
        Rows of the events that are trials; none: all but those of the baseline (rest, fixation) and of answers.
    motion : "auto", "none", Path or sequence of Path
        Register; take the volumes as they lie; or take them as they lie with the motion that these files tell,
        one a run.
    bundle : Path or None
        ParticipantBundle whose mask, reference and learned scales are used.
    settings : EstimateSettings or None
    t_r_s : float or None
        Repetition time in seconds, where the files do not tell.
    final_at_s : float or None
        Seconds after onset at which a trial's beta is final; None: as the settings say, or without settings 8 s
        after the end of the longest stimulus.
    every_volume : bool
        Revise at each volume from onset on, instead of at the settings' times.
    standard_errors : bool
        Betas come with their standard errors.
    regions : sequence of Path
        Masks (NIfTI in the space of the reference) whose percent signal change is followed volume by volume.
    mask : Path or None
        NIfTI mask in the space of the reference, instead of the settings'.
    entities : mapping of str to str, or None
        BIDS labels (``sub``, ``ses``, ``task``) for the derivatives, instead of those in the names of the recordings.
    out : Path or None
        Folder for the derivatives; made if absent.
    progress : callable or None
        Is told the run's name, volumes done and volumes announced (None where unknown).

    Returns
    -------
    Processed

    Raises
    ------
    SettingsError
        If an input is missing or contradicts another; every message names field, expected and got.
    BundleError
        If the bundle is missing or altered.
    VolumeError
        If no volume can be used.
    JournalError
        If the journal of a session is damaged.
    """
    paths, tables = _listed(bold), _listed(events)
    files = [] if isinstance(motion, str) else _listed(motion)
    if not any(path.is_dir() for path in paths):  # the series of a folder are not counted yet
        _check_count(len(paths), tables, files)
    trials = told_apart([read_events(table, run, trial_types) for run, table in enumerate(tables, start=1)])
    known_motion = [read_motion_table(file) for file in files]
    used = _settings(settings, motion, trials, final_at_s)
    used = replace(used, regions={**used.regions, **{_plain_name(path): path for path in regions}})
    if mask is not None:
        if bundle is not None:
            raise SettingsError(["--mask: expected none beside --bundle, which has its own"])
        if not mask.is_file():
            raise SettingsError([f"--mask: expected a NIfTI file, found none at {mask}"])
        used = replace(used, mask=mask)
    calibrated = None if bundle is None else open_calibrated(open_participant(bundle))
    estimator: Estimator | None = None
    runs: list[ProcessedRun] = []
    first: NDArray[np.float32] | None = None
    for path in paths:
        for recorded in _opened(path, len(runs) + 1, t_r_s):
            place = len(runs)
            one = _OneRun(place + 1, recorded, t_r_s, progress)
            if estimator is None:
                if every_volume:
                    used = _at_every_volume(used, one.first_t_r_s)
                session = session_of(path)
                estimator = Estimator(
                    used,
                    _SESSION,
                    calibrated=calibrated,
                    standard_errors=standard_errors,
                    calibration_runs=0 if session is None else calibration_runs(session[0]),
                    reestimates=False,
                )
                estimator.warm_up()
            of_run = trials[place] if place < len(trials) else None
            runs.append(one.play(estimator, of_run, known_motion[place] if place < len(known_motion) else None))
            if first is None:
                first = one.first_aligned
    _check_count(len(runs), tables, files)
    if estimator is None:
        raise SettingsError(["BOLD: expected at least one file or folder, got none"])
    space = estimator.space
    found = Processed(
        runs=tuple(runs),
        reference=space.data,
        affine=space.affine,
        mask=space.mask,
        centre_mm=space.centre_mm,
        settings=used,
        first=first,
    )
    if out is not None:
        from rtdecode.process.writing import write

        write(found, out, sources=paths, every_volume=every_volume, entities=entities or {})
    return found


def _opened(path: Path, first_run: int, t_r_s: float | None) -> Iterator[RecordedRun]:
    recorded = session_of(path)
    if recorded is None:
        return read_runs(path, session=_SESSION, first_run=first_run, t_r_s=t_r_s)
    return session_runs(*recorded, first_run=first_run)


class _OneRun:
    """Plays one run; looks at its first volume before the estimator is made."""

    def __init__(self, run: int, recorded: RecordedRun, t_r_s: float | None, progress: Progress | None) -> None:
        self._run = run
        self._recorded = recorded
        self._progress = progress
        self._items = iter(recorded.items)
        self.first_aligned: NDArray[np.float32] | None = None
        self._held: list[Recorded] = []
        found: float | None = None
        for item in self._items:
            self._held.append(item)
            if isinstance(item, Volume):
                found = item.t_r_s
                break
        if found is None:
            found = t_r_s
        elif t_r_s is not None and abs(found - t_r_s) > T_R_TOLERANCE_S:
            raise SettingsError(
                [f"t_r_s: expected {found:g} s as the files say, got {t_r_s:g} s (--tr): {recorded.name}"]
            )
        if found is None:
            raise SettingsError([f"t_r_s: expected seconds in the files or --tr, got none: {recorded.name}"])
        self.first_t_r_s = found

    def play(self, estimator: Estimator, events: Events | None, motion: NDArray[np.float64] | None) -> ProcessedRun:
        """Feed the estimator and collect what it gives; without events, those of the recording."""
        problems = [*self._recorded.problems, *(events.problems if events else ())]
        estimator.start_run(self._run, self.first_t_r_s, motion=motion)
        announced = list(events.trials if events else ())
        for event in announced:
            estimator.add_event(event)
        volumes: list[RegisteredVolume] = []
        skipped: list[Skipped] = []
        betas: list[BetaUpdate] = []
        done = 0
        for item in itertools.chain(self._held, self._items):
            if not isinstance(item, Volume | Skipped):
                if events is None or isinstance(item, BundleRequest | Command):
                    betas += take(item, estimator, announced)
                continue
            done += 1
            if isinstance(item, Volume):
                try:
                    registered, updates = estimator.step(item)
                except VolumeError as error:
                    item = Skipped(run=self._run, volume=item.stamp.volume, path=item.path, reason=str(error))
                else:
                    if not volumes and estimator.calibrated is not None:
                        data = scaled(item, estimator.space.data.shape)
                        self.first_aligned = estimator.space.aligned(data, item.affine, registered.matrix)
                    volumes.append(registered)
                    betas += updates
                    problems += [problem for problem in item.problems if problem not in problems]
            if isinstance(item, Skipped) and item.volume is not None:
                skipped.append(item)
                estimator.skip(self._run, item.volume)
            if self._progress is not None:
                self._progress(self._recorded.name, done, self._recorded.announced)
        if not volumes:
            reason = skipped[0].reason if skipped else "no volumes"
            if "registration" in reason:
                reason += "; --motion none takes the volumes as they lie"
            if "estimate.mask" in reason:
                reason += " (--mask)"
            raise VolumeError(Path(self._recorded.name), "data", "at least one usable volume", reason)
        betas += estimator.finish_run()
        run = ProcessedRun(
            run=self._run,
            name=self._recorded.name,
            t_r_s=estimator.t_r_s or self.first_t_r_s,
            volumes=tuple(volumes),
            skipped=tuple(skipped),
            events=tuple(announced),
            betas=tuple(betas),
            problems=tuple(problems),
            design=estimator.last_design,
        )
        run = replace(run, problems=(*run.problems, *trial_problems(run.events, run.length * run.t_r_s)))
        for problem in run.problems:
            _log.warning("%s: %s", run.name, problem)
        for one in skipped[:_TOLD]:
            _log.warning("%s: volume %s skipped: %s", run.name, one.volume, one.reason)
        if len(skipped) > _TOLD:
            _log.warning("%s: %d more volumes skipped; see the quality table", run.name, len(skipped) - _TOLD)
        return run


def _check_count(runs: int, events: Sequence[Path], motion: Sequence[Path]) -> None:
    for option, given in (("--events", events), ("--motion", motion)):
        if given and len(given) != runs:
            raise SettingsError([f"{option}: expected one table for each of {runs} runs, got {len(given)}"])


def _listed(paths: Path | Sequence[Path]) -> list[Path]:
    return [paths] if isinstance(paths, Path) else list(paths)


def _settings(
    given: EstimateSettings | None,
    motion: Motion,
    trials: Sequence[Events],
    final_at_s: float | None,
) -> EstimateSettings:
    used = given or EstimateSettings()
    if final_at_s is None and given is None:
        longest_s = max((event.duration_s for events in trials for event in events.trials), default=0.0)
        final_at_s = longest_s + _AFTER_STIMULUS_S
    if final_at_s is not None:
        if not (math.isfinite(final_at_s) and final_at_s > 0):
            raise SettingsError([f"--final-at: expected seconds after onset, got {final_at_s}"])
        earlier = tuple(s for s in used.revise_at_s if s < final_at_s)
        used = replace(used, final_at_s=final_at_s, revise_at_s=earlier)
    if motion != "auto":
        used = replace(used, registration="off", motion_file=None)
    if motion == "none":
        used = replace(used, confounds="none")
    return used


def _at_every_volume(settings: EstimateSettings, t_r_s: float) -> EstimateSettings:
    """Revise at multiples of the repetition time after onset: between two of them lies exactly one volume's end."""
    count = math.ceil(settings.final_at_s / t_r_s - 1e-9)
    return replace(settings, revise_at_s=tuple(t_r_s * k for k in range(1, count)))


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
