"""From volumes to betas: a fold over its inputs, without clock or output."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import ProtocolError, VolumeError
from rtdecode.estimate import design, registration
from rtdecode.estimate.calibrated import Calibrated, Learned
from rtdecode.estimate.glm import Expectation, apply_weights
from rtdecode.estimate.inputs import filled, motion_row, repetition_time, scaled
from rtdecode.estimate.labels import sums_by_place
from rtdecode.estimate.learning import FinishedRun, Prior, first_scales
from rtdecode.estimate.quality import Censoring, RunQuality, framewise_displacement
from rtdecode.estimate.reestimate import CalibrationBetas, Reestimator
from rtdecode.estimate.region import NO_SIGNALS, Regions, RegionSignal
from rtdecode.estimate.report import DesignMatrix
from rtdecode.estimate.run import RunSeries, new_series, nothing
from rtdecode.estimate.space import Space, read_motion
from rtdecode.estimate.trials import AnnouncedTrial, AnnouncedTrials, Due
from rtdecode.estimate.voxels import VoxelLearner, VoxelModel
from rtdecode.records import BetaUpdate, RegisteredVolume, Stamp, TrialEvent, Volume, frozen
from rtdecode.settings import EstimateSettings

_LOST_FIT = 0.5


class Estimator:
    """Registers volumes and estimates each trial's response from the volumes so far.

    Betas are percent signal change, one per voxel of `mask` in C order: a trial's deviation from the voxel's
    mean response, shrunk by its reliability, or with ``shrinkage = "none"`` its whole response.

    Parameters
    ----------
    settings : EstimateSettings
    session : str
        Session identifier, for stamps.
    calibrated : Calibrated or None
        An earlier visit whose reference, mask and scales hold; None: the first volume is the reference, and runs
        teach later ones.
    standard_errors : bool
        Whether betas come with their standard errors; this takes a pass over the whole run each time.
    voxels : VoxelModel or None
        Response, autocorrelation and shrinkage of each voxel of the mask, known beforehand.
    scratch : Path or None
        Folder for what is large of earlier runs; None keeps it in memory.
    calibration_runs : int
        Runs from 1 to this one teach later ones and can be estimated anew by `reestimated`: all betas that are decoded
        are then of the kind that the decoder was fitted on. 0: every run teaches later ones.
    reestimates : bool
        Whether `reestimated` will be asked for; else the series of these runs are not kept.

    Attributes
    ----------
    trials : AnnouncedTrials
    last_design : DesignMatrix or None
        Model of the run finished last; None without trials.
    """

    def __init__(
        self,
        settings: EstimateSettings,
        session: str,
        *,
        calibrated: Calibrated | None = None,
        standard_errors: bool = False,
        voxels: VoxelModel | None = None,
        scratch: Path | None = None,
        calibration_runs: int = 0,
        reestimates: bool = True,
    ) -> None:
        self._settings = settings
        self._session = session
        self._standard_errors = standard_errors
        self.trials = AnnouncedTrials((*sorted(settings.revise_at_s), settings.final_at_s))
        self._space: Space | None = None
        self._calibrated = calibrated
        if calibrated is not None:
            self._space = Space(calibrated.reference, calibrated.affine, settings, calibrated.mask)
            voxels = calibrated.learned.voxels
        self._prior = Prior(
            learn=settings.shrinkage == "learned",
            learn_lag=settings.response_lag == "learned",
            known=None if calibrated is None else calibrated.learned.expectation,
            scratch=scratch,
        )
        self._voxels = VoxelLearner(
            hrf=settings.voxel_hrf,
            rho=settings.autocorrelation == "voxel",
            shrinkage=settings.voxel_shrinkage,
        )
        self._calibration_runs = calibration_runs
        self._reestimates = reestimates
        self._calibrates = calibrated is None
        self._calibration = Reestimator(settings, calibration_runs if reestimates and not calibrated else 0, scratch)
        self._voxel_model = voxels
        self._finished, self._left_out = set[int](), set[int]()
        self._run: int | None = None
        self._t_r_s: float | None = None
        self._series: RunSeries | None = None
        self._file_motion: NDArray[np.float64] | None = None
        self.last_design: DesignMatrix | None = None
        self._start_run_state()

    def _start_run_state(self) -> None:
        self._index = -1
        self._t_r_measured = False
        self._stamp: Stamp | None = None
        self._last_motion: NDArray[np.float64] | None = None
        self._censoring = Censoring(self._settings.censor_fd_mm)
        self._quality = RunQuality()
        self._series = None
        self._regions: Regions | None = None
        self._slice_times_s: NDArray[np.float64] | None = None

    def warm_up(self) -> None:
        """Compile the inner loops, so that the first volume is not slow."""
        apply_weights(np.zeros((1, 1)), np.zeros((1, 1), np.float32))
        sums_by_place(np.zeros(1, np.int64), np.zeros(1, np.float32), 1)
        if self._settings.registration == "rigid":
            registration.warm_up()

    @property
    def space(self) -> Space:
        """Reference, brain and mask of the session. Raises RuntimeError before the first volume."""
        if self._space is None:
            raise RuntimeError("the reference is the first volume of the session, and none has come yet")
        return self._space

    @property
    def t_r_s(self) -> float | None:
        """Repetition time of the run that is open, seconds; None before its first volume."""
        return self._t_r_s

    @property
    def calibrated(self) -> Calibrated | None:
        """The earlier visit whose space and scales hold, if any."""
        return self._calibrated

    @property
    def calibrates(self) -> bool:
        """Whether a decoder is fitted to betas of this session: it has none of an earlier visit, or began again."""
        return self._calibrates

    @property
    def learned(self) -> Learned | None:
        """What the runs so far, or the earlier visit, taught, for later ones; None before the first that does."""
        expectation = self._prior.learned
        return None if expectation is None else Learned(expectation=expectation, voxels=self._voxel_model)

    def reestimated(self) -> CalibrationBetas | None:
        """Return the betas of the calibration runs so far by all that was learned by now; None before that is any."""
        learned = self._prior.learned
        if self._space is None or learned is None:
            return None

        def expected(run: int) -> Expectation:
            if self._calibrated is not None:  # betas were of one kind from the start
                return learned
            return replace(learned, mean_response=self._prior.mean_response(without=run))

        return self._calibration.betas(self._space.mask, expected, self._voxel_model)

    @property
    def calibration_runs(self) -> int:
        """Runs from 1 to this one teach later ones; 0: every run does."""
        return self._calibration_runs

    def end_calibration(self, run: int, *, anew: bool = False) -> None:
        """Let runs after this one teach nothing; if `anew`, `reestimated` is of the open one to this alone."""
        self._calibration_runs = run if anew else min(run, self._calibration_runs)
        self._calibrates |= anew
        if anew and self._reestimates:
            self._calibration.begin_again(run)

    @property
    def response_lag_s(self) -> float:
        """How much later than announced the responses come, as learned from the runs so far, seconds."""
        return self._prior.lag_s

    def start_run(self, run: int, t_r_s: float | None, *, motion: NDArray[np.float64] | None = None) -> None:
        """Begin a run.

        Parameters
        ----------
        run : int
            Not begun before.
        t_r_s : float or None
            Repetition time in seconds; None: as the run's first volume tells.
        motion : array of shape (t, 6) or None
            Translations in mm and rotations in radians that replace the estimated motion, one row a volume;
            None: as the settings say.

        Raises
        ------
        ProtocolError
            If another run is open, or this one is over.
        SettingsError
            If the run's motion file is missing or malformed.
        """
        if self._run is not None:
            raise ProtocolError(f"run {run}: expected run {self._run} to be finished first")
        if run in self._finished:
            raise ProtocolError(f"run {run}: expected a new run, got one that is over")
        folder = self._settings.motion_file
        if motion is None and folder is not None:
            motion = read_motion(folder / f"run-{run}.txt")
        self._file_motion = motion
        self._run = run
        self._t_r_s = t_r_s
        self._start_run_state()

    def add_event(self, event: TrialEvent) -> None:
        """Take note of a trial, before or after the volumes that it concerns.

        Raises
        ------
        ProtocolError
            If the trial is known already, its times are unusable or its run is over.
        """
        self.trials.add(event)

    def leave_out(self, run: int) -> None:
        """Let a run teach nothing, if it is not over, and its trials be none of `reestimated`."""
        self._left_out.add(run)
        self._calibration.leave_out(run)

    def skip(self, run: int, volume_index: int) -> None:
        """Record that a volume will not come: a missing row.

        Raises
        ------
        ProtocolError
            If the run is not open or the volume is not after the last one.
        """
        self._check_order(run, volume_index)
        self._index = volume_index

    def step(self, volume: Volume) -> tuple[RegisteredVolume, list[BetaUpdate]]:
        """Take one volume.

        Parameters
        ----------
        volume : Volume
            Later than any of its run before; indices left out count as missing.

        Returns
        -------
        RegisteredVolume
        list of BetaUpdate
            Of the trials that became due at this volume.

        Raises
        ------
        VolumeError
            If the volume is of another shape or repetition time, not finite in the brain, or does not resemble the
            reference. Nothing has changed then.
        ProtocolError
            If the run is not open or the volume is not after the last one.
        SettingsError
            At the session's first volume, if the mask file does not fit it.
        """
        self._check_order(volume.stamp.run, volume.stamp.volume)
        data = scaled(volume, None if self._space is None else self._space.data.shape)
        t_r_s = repetition_time(volume, self._t_r_s, measured=self._t_r_measured)
        space = self._space or self._first_space(data, volume)
        data = filled(volume, data, space.needed)
        placed = space.place(data, volume.affine)
        if not placed.fit > _LOST_FIT:
            raise VolumeError(
                Path(volume.path), "data", f"a correlation with the reference above {_LOST_FIT}", placed.fit
            )
        motion = placed.motion
        if self._file_motion is not None:
            motion = motion_row(self._file_motion, volume)
        self._t_r_measured |= volume.t_r_measured
        self._space, self._index, self._stamp = space, volume.stamp.volume, volume.stamp
        if self._series is None:
            self._t_r_s = t_r_s
            self._slice_times_s = volume.slice_times_s
            self._series = new_series(self._settings, space.mask, t_r_s, volume.slice_times_s, self._voxel_model)
            if space.regions or space.parcels:
                signal = RegionSignal(self._series.timing, self._settings.confounds, first_scales())
                self._regions = Regions(space.regions, space.mask, signal, space.parcels)
        elif t_r_s != self._t_r_s:
            self._t_r_s = t_r_s
            self._series.retime(t_r_s, design.reference_moment(t_r_s, volume.slice_times_s))
            if self._regions is not None:
                self._regions.retime(self._series.timing)
        change = np.zeros(6) if self._last_motion is None else motion - self._last_motion
        fd_mm = framewise_displacement(change)
        self._last_motion = motion
        dvars, tsnr = self._quality.add(placed.masked)
        percent = NO_SIGNALS if self._regions is None else self._regions.unknown()
        censored = self._censoring.leaves_out(fd_mm, motion)
        if not censored:
            self._series.add(self._index, placed.masked, motion, change)
            if self._regions is not None:
                percent = self._regions.add(self._index, placed.masked, motion, change)
        registered = RegisteredVolume(
            stamp=volume.stamp,
            masked=frozen(placed.masked),
            matrix=frozen(placed.matrix),
            motion=frozen(motion),
            fd_mm=fd_mm,
            dvars=dvars,
            tsnr=tsnr,
            fit=placed.fit,
            regions=percent.regions,
            parcels=percent.parcels,
            censored=censored,
            t_r_s=t_r_s,
        )
        return registered, self._due((self._index + 1) * t_r_s, volume.stamp)

    def give_up(self, run: int, name: str) -> list[BetaUpdate]:
        """Return the final beta of a trial from the volumes there are, as at its end; none if it is out."""
        stamp = self._stamp
        if run != self._run or stamp is None:
            return []
        end_s = (self._index + 1) * (self._t_r_s or 0.0)
        trials = self.trials.begun(run, math.inf)
        wanted = [(trial, True) for trial in trials if trial.event.trial == name and not trial.closed]
        return self._publish(wanted, trials, stamp, end_s)

    def finish_run(self) -> list[BetaUpdate]:
        """End the run: final betas of the trials still open; later runs learn from it.

        Raises
        ------
        ProtocolError
            If no run is open.
        """
        if self._run is None:
            raise ProtocolError("finish_run: expected an open run, got none")
        stamp = self._stamp or Stamp(
            session=self._session, run=self._run, volume=-1, received_s=0.0, received_mono_s=0.0
        )
        end_s = (self._index + 1) * (self._t_r_s or 0.0)
        trials = self.trials.end(self._run)
        updates = self._publish([(trial, True) for trial in trials if not trial.closed], trials, stamp, end_s)
        self.last_design = None
        if self._series is not None and trials:
            events = [trial.event for trial in trials]
            expected = self._prior.expectation(self._series.timing.typical_energy(events))
            self.last_design = self._series.design_matrix(events, expected)
        teaches = self._run not in self._left_out and self._run <= (self._calibration_runs or self._run)
        if self._series is not None and teaches:
            finals = [(trial.event, trial.last_index) for trial in trials]
            self._calibration.keep(self._run, self._series, self._t_r_s or 0.0, self._slice_times_s, finals)
            finished = self._series.finished([trial.event for trial in trials])
            if finished is not None:
                self._prior.add(self._run, finished)
                self._learn_voxels(finished)
        self._finished.add(self._run)
        self._run = None
        return updates

    def _check_order(self, run: int, index: int) -> None:
        if run != self._run:
            raise ProtocolError(f"volume {index} of run {run}: expected run {self._run} (call start_run first)")
        if index <= self._index:
            raise ProtocolError(f"volume {index} of run {run}: expected an index after {self._index}")

    def _first_space(self, data: NDArray[np.float32], volume: Volume) -> Space:
        try:
            return Space(data, np.asarray(volume.affine, np.float64), self._settings)
        except ValueError as error:
            raise VolumeError(Path(volume.path), "data", "an image of a head", error) from None

    def _learn_voxels(self, finished: FinishedRun) -> None:
        if self._calibrated is not None:
            return
        scales = self._prior.scales(finished)
        self._voxels.add(finished, scales, self._prior.lag_s)
        self._voxel_model = self._voxels.model(scales) or self._voxel_model

    def _due(self, end_s: float, stamp: Stamp) -> list[BetaUpdate]:
        trials = self.trials.begun(stamp.run, end_s)
        due = self.trials.due(trials, end_s)
        return self._publish(due, trials, stamp, end_s) if due else []

    def _publish(self, wanted: list[Due], trials: list[AnnouncedTrial], stamp: Stamp, end_s: float) -> list[BetaUpdate]:
        """Estimate; an early beta that cannot be had yet is left out, a final one is told to be invalid."""
        if not wanted:
            return []
        size = 0 if self._space is None else int(self._space.mask.sum())
        if self._series is None:
            found = nothing(len(wanted), size, "no usable volume in the run")
        else:
            places = [trials.index(trial) for trial, _ in wanted]
            events = [trial.event for trial in trials]
            expected = self._prior.expectation(self._series.timing.typical_energy(events))
            found = self._series.estimate(places, events, expected, standard_errors=self._standard_errors)
        values = found.values.astype(np.float32)
        errors = None if found.standard_errors is None else found.standard_errors.astype(np.float32)
        updates = []
        for i, ((trial, last), beta, reason) in enumerate(zip(wanted, values, found.reasons, strict=True)):
            trial.closed = last
            trial.last_index = self._index
            if reason is not None and not last:
                continue
            updates.append(
                BetaUpdate(
                    stamp=replace(stamp, trial=trial.event.trial),
                    event=trial.event,
                    revision=trial.revision,
                    final=last,
                    delay_s=end_s - trial.event.onset_s,
                    beta=frozen(beta),
                    invalid=reason,
                    standard_error=None if errors is None else frozen(errors[i]),
                )
            )
            trial.revision += 1
        return updates
