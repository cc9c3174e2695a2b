"""The records that travel down the line.

    file -> Volume -> RegisteredVolume -> BetaUpdate -> what is decoded (`rtdecode.decoded`) -> message

Frozen, slotted, keyword-only, compared by identity; arrays are read-only. Each carries one `Stamp`,
unchanged from end to end, so that latency anywhere is a subtraction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view of `array`."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Where a record belongs and when it came.

    Attributes
    ----------
    session : str
        Session identifier.
    run : int
        Run number, from 1.
    volume : int
        Index of the (last) volume of the run that the record rests on, from 0 after dummies.
    trial : str or None
        Trial identifier, where the record belongs to one.
    acquired_s : float or None
        Start of acquisition of that volume, seconds since 1970 by the scanner's clock; None if unknown.
    received_s : float
        When the file was found complete, seconds since 1970 by this machine's clock.
    received_mono_s : float
        The same moment on the monotonic clock: latencies are measured from it.
    """

    session: str
    run: int
    volume: int
    trial: str | None = None
    acquired_s: float | None = None
    received_s: float
    received_mono_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """One volume as stored by the scanner.

    Attributes
    ----------
    stamp : Stamp
    data : array of shape (i, j, k), integer or float32
        Stored values, unscaled; voxel axes as described by `affine`.
    slope, intercept : float
        Value = ``data * slope + intercept``.
    affine : array of shape (4, 4), float64
        Voxel indices to RAS+ mm.
    t_r_s : float or None
        Repetition time in seconds, None if the file does not tell.
    t_r_measured : bool
        It is the distance of the acquisition times instead: that of the whole run, whatever earlier volumes said.
    slice_times_s : array of shape (k,) or None
        Acquisition time of each slice after the start of the volume, seconds.
    series_uid : str
        Identity of the series.
    instance : int
        Instance or volume number in the series as the file gives it.
    path : str
        Name of the source file, without its folder.
    problems : tuple of str
        What a reader noticed but could live with.
    """

    stamp: Stamp
    data: NDArray[Any]
    slope: float = 1.0
    intercept: float = 0.0
    affine: NDArray[np.float64]
    t_r_s: float | None
    t_r_measured: bool = False
    slice_times_s: NDArray[np.float64] | None
    series_uid: str
    instance: int
    path: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Skipped:
    """A volume (or file) that could not be used, and why."""

    run: int
    volume: int | None
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run as far as it had come.

    Attributes
    ----------
    number : int
    series_uid : str
    offset : int
        Instance number of volume 0.
    next_index : int
        The lowest index that has neither come nor been given up.
    """

    number: int
    series_uid: str
    offset: int
    next_index: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialEvent:
    """A stimulus as the experiment announces it.

    Attributes
    ----------
    run : int
    trial : str
        Unique in the session.
    onset_s, duration_s : float
        Seconds from the start of the acquisition of volume 0 of the run.
    stimulus : str or None
        Stimulus identifier, where the experiment tells.
    condition : str or None
        ``trial_type`` of BIDS events.
    candidates : tuple of str
        Pictures among which the one that fits the response best is chosen; empty: none.
    """

    run: int
    trial: str
    onset_s: float
    duration_s: float
    stimulus: str | None = None
    condition: str | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAmended:
    """The experiment corrects what it has announced of a trial; all of it is told again.

    Attributes
    ----------
    run, trial, onset_s, duration_s, stimulus, condition, candidates
        As of `TrialEvent`.
    """

    run: int
    trial: str
    onset_s: float
    duration_s: float
    stimulus: str | None = None
    condition: str | None = None
    candidates: tuple[str, ...] = ()

    @property
    def event(self) -> TrialEvent:
        """The trial as it is now."""
        return TrialEvent(**asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCancelled:
    """The experiment withdraws a trial that it has announced: it was not shown."""

    run: int
    trial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOverdue:
    """A trial was due when the scanner had stopped: it is told of what there is of it, whatever comes later."""

    run: int
    trial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """The experiment says that a run begins, how many volumes it expects and how many seconds apart."""

    run: int
    expected: int | None
    t_r_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """The experiment says that a run is over, and how many volumes it had."""

    run: int
    volumes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmStart:
    """The experiment says when a film begins, or where it goes on after a pause.

    Attributes
    ----------
    run : int
    film : str
        Its name among the settings' predictions.
    onset_s : float
        When the film's first frame is, or would have been, seconds from the start of the run's volume 0.
    """

    run: int
    film: str
    onset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRequest:
    """From here on trials are decoded, with the ParticipantBundle of that identity in that folder.

    Attributes
    ----------
    folder, identity : str
    last_run : int or None
        With which calibration is over; None: as the settings say.
    token : str or None
        As of `Command`.
    """

    folder: str
    identity: str
    last_run: int | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Somebody steers the session.

    Attributes
    ----------
    token : str
        Names the command: one of the same token is not carried out again.
    command : {"pause", "resume", "feedback", "bad_run", "recalibrate", "stop", "film"}
        Film: the protocol's rule asks for another film, `target`.
    reason : str
        Why, in words.
    run : int or None
        The run that is bad, or the first that calibrates again.
    onset_s : float or None
        Trials of that first run with earlier onsets do not calibrate, seconds.
    last_run : int or None
        The last run that calibrates again.
    target : str or None
        Of the score for feedback; None: as it was. Or the film.
    regions : tuple of str or None
        The same.
    threshold, half_life_s : float or None
        The same.
    """

    token: str
    command: Literal["pause", "resume", "feedback", "bad_run", "recalibrate", "stop", "film"]
    reason: str = ""
    run: int | None = None
    onset_s: float | None = None
    last_run: int | None = None
    target: str | None = None
    regions: tuple[str, ...] | None = None
    threshold: float | None = None
    half_life_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegisteredVolume:
    """A volume in the space of the reference, with its quality.

    Attributes
    ----------
    stamp : Stamp
    masked : array of shape (v,), float32
        Scaled values of the voxels of the mask, after resampling.
    matrix : array of shape (4, 4), float64
        Takes RAS mm of the reference to RAS mm of this volume.
    motion : array of shape (6,), float64
        ``trans_x, trans_y, trans_z`` in mm and ``rot_x, rot_y, rot_z`` in radians, RAS axes.
    fd_mm : float
        Framewise displacement after Power et al. (2012), 50 mm radius; 0 for the first volume.
    dvars : float
        Root mean square of the change from the volume before, percent of the mean; 0 for the first.
    tsnr : float
        Median over the mask of mean / standard deviation of the run so far; nan before 8 volumes.
    fit : float
        Correlation of the registered volume with the reference over the brain.
    regions : mapping of str to float
        Percent signal change of each region of the settings, freed from drift and motion; nan where the volume is
        censored or those before do not predict it.
    parcels : mapping of str to mapping of str to float
        The same of each parcel, by its label, of each label image of the settings.
    censored : bool
        It moved too much to be used.
    t_r_s : float or None
        Repetition time of the run as far as known at this volume, seconds; None where nobody told.
    """

    stamp: Stamp
    masked: NDArray[np.float32]
    matrix: NDArray[np.float64]
    motion: NDArray[np.float64]
    fd_mm: float
    dvars: float
    tsnr: float
    fit: float
    regions: Mapping[str, float] = field(default_factory=dict)
    parcels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    censored: bool = False
    t_r_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BetaUpdate:
    """A trial's response estimate from the volumes so far.

    Attributes
    ----------
    stamp : Stamp
        ``stamp.volume`` is the last volume used.
    event : TrialEvent
    revision : int
        Counts the betas of this trial, from 0.
    final : bool
        No later beta of this trial will come.
    delay_s : float
        End of the last volume used, seconds after trial onset.
    beta : array of shape (v,), float32
        Percent signal change per voxel of the mask.
    invalid : str or None
        Why there is no usable estimate (then `beta` is all nan), else None.
    standard_error : array of shape (v,), float32, or None
        Of `beta`, where the estimator was asked for it.
    average : array of shape (v,), float32, or None
        Mean of `beta` and the final betas of the stimulus's earlier trials; None where there are none, or none are
        wanted.
    shown : int
        Trials that `average` is of.
    """

    stamp: Stamp
    event: TrialEvent
    revision: int
    final: bool
    delay_s: float
    beta: NDArray[np.float32]
    invalid: str | None = None
    standard_error: NDArray[np.float32] | None = None
    average: NDArray[np.float32] | None = None
    shown: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How betas differ from those of the calibration, in its standard deviations per voxel.

    Attributes
    ----------
    trials : int
        Seen so far; two at least.
    shift : float
        Median over voxels of the distance of the mean from the calibration's; about .67 / sqrt(trials) for betas
        that have not drifted.
    spread : float
        Median over voxels of the standard deviation; about 1.
    """

    trials: int
    shift: float
    spread: float
