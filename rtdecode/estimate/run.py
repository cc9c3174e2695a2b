"""One run as it grows: the masked series, its confounds, and the betas that it gives so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate import design, glm
from rtdecode.estimate.glm import Expectation, Scales, Solution, apply_weights
from rtdecode.estimate.learning import FinishedRun
from rtdecode.estimate.report import DesignMatrix, column_names
from rtdecode.estimate.voxels import Group, Groups, VoxelModel, group
from rtdecode.records import TrialEvent
from rtdecode.settings import EstimateSettings

FloatArray = NDArray[np.float64]
Float = TypeVar("Float", np.float32, np.float64)

_FIRST_CAPACITY = 128
_ENOUGH = 16  # volumes from which anything can be learned
_DIM = 1e-3  # of the first volume's median: darker voxels have no percent
_BLOCK = 2048  # voxels whose residuals are formed at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """Responses to some trials.

    Attributes
    ----------
    values : array of shape (n, v), float64
        Percent signal change; nan where there is no estimate.
    standard_errors : array of shape (n, v), float64, or None
        Of `values`, where asked for.
    reasons : list of n (str or None)
        Why there is none.
    """

    values: FloatArray
    standard_errors: FloatArray | None
    reasons: list[str | None]


def nothing(count: int, n_voxels: int, reason: str) -> Estimates:
    """Return that there is no estimate of `count` trials, and why."""
    return Estimates(values=np.full((count, n_voxels), np.nan), standard_errors=None, reasons=[reason] * count)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Nuisance:
    """What all groups of voxels share: volumes in use, drift, motion, which trials have entered, their regressors."""

    rows: NDArray[np.int64]
    drift: FloatArray
    motion: FloatArray
    entered: NDArray[np.bool_]
    trials: FloatArray


class RunSeries:
    """The volumes of one run in use.

    Parameters
    ----------
    timing : design.RunTiming
    confounds : {"6", "24", "none"}
        Which motion regressors are in the model.
    separate : bool
        Whether each trial is fitted against the sum of all others (LSS) instead of all at once (LSA).
    groups : Groups or None
        Voxels that share a model; None: all do.
    """

    def __init__(
        self,
        timing: design.RunTiming,
        *,
        confounds: design.Confounds,
        separate: bool = False,
        groups: Groups | None = None,
    ) -> None:
        self.timing = timing
        self._confounds = confounds
        self._separate = separate
        self._groups = groups
        self._regressors: dict[design.RunTiming, design.Regressors] = {}
        self._count = 0
        self._indices = np.zeros(_FIRST_CAPACITY, np.int64)
        self._motion = np.zeros((_FIRST_CAPACITY, 2, 6))  # parameters, and their changes
        self._dim = 0.0
        self._first = np.zeros(0, np.float32)
        self._differences = np.zeros((0, 0), np.float32)
        self._sum = np.zeros(0)

    def add(
        self, index: int, masked: NDArray[np.float32], motion: FloatArray, change: FloatArray | None = None
    ) -> None:
        """Take a volume into use.

        It is stored as the difference from the first one: float32 then keeps what the weights, which sum to
        zero, will look at.

        Parameters
        ----------
        index : int
        masked : array of shape (v,), float32
        motion : array of shape (6,), float64
        change : array of shape (6,), float64, or None
            Of the motion, from the volume before; None: none.
        """
        count = self._count
        if self._groups is None:
            self._groups = group(len(masked))
        if self._groups.order is not None:
            masked = masked[self._groups.order]
        if count == 0:
            self._first = masked
            self._dim = _DIM * float(np.median(masked))
            self._differences = np.empty((_FIRST_CAPACITY, len(masked)), np.float32)
            self._sum = np.zeros(len(masked))
        elif count == len(self._differences):
            self._differences = np.concatenate([self._differences, np.empty_like(self._differences)])
            self._indices = np.concatenate([self._indices, np.empty_like(self._indices)])
            self._motion = np.concatenate([self._motion, np.empty_like(self._motion)])
        np.subtract(masked, self._first, out=self._differences[count])
        self._sum += self._differences[count]
        self._indices[count] = index
        self._motion[count] = motion, np.zeros(6) if change is None else change
        self._count = count + 1

    def recorded(self) -> tuple[NDArray[np.int64], NDArray[np.float32], FloatArray]:
        """Return indices (t,), masked values (t, v) and motion with its changes (t, 2, 6) of the volumes in use."""
        values = self._in_mask_order(self._used() + self._first)
        return self._indices[: self._count].copy(), values, self._motion[: self._count].copy()

    def retime(self, t_r_s: float, phase_s: float) -> None:
        """Take the volumes so far as acquired every `t_r_s` seconds, which was not known before."""
        self.timing = replace(self.timing, t_r_s=t_r_s, phase_s=phase_s)
        self._regressors.clear()

    def betas(
        self, wanted: Sequence[int], events: Sequence[TrialEvent], expected: Expectation
    ) -> tuple[NDArray[np.float32], list[str | None]]:
        """Do as `estimate` does, in float32 and without standard errors."""
        found = self.estimate(wanted, events, expected)
        return found.values.astype(np.float32), found.reasons

    def estimate(
        self,
        wanted: Sequence[int],
        events: Sequence[TrialEvent],
        expected: Expectation,
        *,
        standard_errors: bool = False,
    ) -> Estimates:
        """Estimate the responses to some trials from all volumes in use.

        Parameters
        ----------
        wanted : sequence of n int
            Places in `events`.
        events : sequence of TrialEvent
            All that is known of the run.
        expected : Expectation
        standard_errors : bool
            Also those: takes a pass over the whole series.
        """
        values = np.full((len(wanted), len(self._first)), np.nan)
        errors = np.full_like(values, np.nan) if standard_errors else None
        if not self._count or self._groups is None:
            return nothing(len(wanted), len(self._first), "no usable volume in the run")
        nuisance = self._nuisance(events, expected)
        column = {place: i for i, place in enumerate(np.flatnonzero(nuisance.entered).tolist())}
        ready = [i for i, place in enumerate(wanted) if place in column]
        little = f"less than {design.ENTRY_ENERGY:.0%} of the response was observed"
        reasons: list[str | None] = [None if place in column else little for place in wanted]
        if not ready:
            return Estimates(values=values, standard_errors=errors, reasons=reasons)
        targets = [column[wanted[i]] for i in ready]
        percent = self._to_percent()
        of_timing = {self.timing: nuisance.trials}
        for number, of_group in enumerate(self._groups.groups):
            voxels = slice(*self._groups.bounds[number : number + 2].tolist())
            timing = of_group.timing(self.timing)
            if timing not in of_timing:
                every = self._regressors_of(timing).of(nuisance.rows, events, expected.lag_s)
                of_timing[timing] = every[:, nuisance.entered]
            trials = of_timing[timing]
            scales = of_group.scales(expected.scales)
            try:
                solved = self._solve(nuisance, trials, scales, _rho(of_group, scales), targets)
            except np.linalg.LinAlgError as error:
                return Estimates(
                    values=np.full_like(values, np.nan),
                    standard_errors=None if errors is None else np.full_like(errors, np.nan),
                    reasons=[reason or str(error) for reason in reasons],
                )
            functional = np.concatenate([one.functionals for one in solved])
            found = percent[voxels] * apply_weights(functional, self._used(), voxels.start, voxels.stop)
            known = np.zeros_like(trials[:, 0])
            mean = self._known_mean(expected, voxels)
            if mean is not None:
                known = trials.sum(1)
                found -= np.outer(functional @ known, mean)
            values[ready, voxels] = found
            if errors is not None:
                sigmas = [
                    self._sigma(one, nuisance.rows, _rho(of_group, scales), voxels, known, mean) for one in solved
                ]
                spread = [np.outer(one.spread, sigma) for one, sigma in zip(solved, sigmas, strict=True)]
                errors[ready, voxels] = np.concatenate(spread)
        return Estimates(
            values=self._in_mask_order(values),
            standard_errors=None if errors is None else self._in_mask_order(errors),
            reasons=reasons,
        )

    def finished(self, events: Sequence[TrialEvent]) -> FinishedRun | None:
        """Hand over what later runs may learn from; None if that is nothing."""
        rows = self._indices[: self._count]
        if len(rows) < _ENOUGH or not design.trial_regressors(self.timing, rows, events, 0.0)[1].any():
            return None
        percent = (self._to_percent() * (self._used() - self._sum / len(rows))).astype(np.float32)
        return FinishedRun(
            timing=self.timing,
            events=tuple(events),
            rows=rows,
            motion=self._motion_regressors(),
            percent=self._in_mask_order(percent),
        )

    def design_matrix(self, events: Sequence[TrialEvent], expected: Expectation) -> DesignMatrix | None:
        """Return the columns of the model of all trials at once, as it stands; None before the first volume."""
        if not self._count:
            return None
        nuisance = self._nuisance(events, expected)
        model, _ = glm.single_trial_design(
            nuisance.rows, nuisance.drift, nuisance.motion, nuisance.trials, expected.scales
        )
        entered = [event.trial for event, has in zip(events, nuisance.entered, strict=True) if has]
        names = column_names(nuisance.drift.shape[1], nuisance.motion.shape[1], entered, model.columns.shape[1])
        return DesignMatrix(columns=model.columns, names=names, rows=nuisance.rows)

    def _nuisance(self, events: Sequence[TrialEvent], expected: Expectation) -> _Nuisance:
        rows = self._indices[: self._count]
        regressors = self._regressors_of(self.timing)
        every = regressors.of(rows, events, expected.lag_s)
        entered = regressors.have_entered(every, events, expected.lag_s)
        return _Nuisance(
            rows=rows,
            drift=design.scaled_drift(self.timing, rows),
            motion=self._motion_regressors(),
            entered=entered,
            trials=every[:, entered],
        )

    def _regressors_of(self, timing: design.RunTiming) -> design.Regressors:
        return self._regressors.setdefault(timing, design.Regressors(timing))

    def _solve(
        self, nuisance: _Nuisance, trials: FloatArray, scales: Scales | None, rho: float, targets: list[int]
    ) -> list[Solution]:
        """Return one solution for all targets, or one for each."""
        parts = (nuisance.rows, nuisance.drift, nuisance.motion, trials, scales)
        if not self._separate:
            model, columns = glm.single_trial_design(*parts)
            return [glm.solve(model, [columns[target] for target in targets], rho)]
        solved = []
        for target in targets:
            model, column = glm.separate_trial_design(*parts, target)
            solved.append(glm.solve(model, [column], rho))
        return solved

    def _known_mean(self, expected: Expectation, voxels: slice) -> NDArray[np.float32] | None:
        """Return the prior mean response of a group, where trials are deviations from it."""
        if expected.mean_response is None or self._separate or self._groups is None:
            return None
        order = self._groups.order
        mean = expected.mean_response if order is None else expected.mean_response[order]
        return np.asarray(mean[voxels])

    def _sigma(
        self,
        solved: Solution,
        rows: NDArray[np.int64],
        rho: float,
        voxels: slice,
        known: FloatArray,
        mean: NDArray[np.float32] | None,
    ) -> FloatArray:
        """Estimate the standard deviation of the noise's innovations per voxel, percent, shape (v,)."""
        to_percent, series = self._to_percent()[voxels], self._used()[:, voxels]
        sigma = np.full(series.shape[1], np.nan)
        if solved.freedom <= 0:
            return sigma
        for start in range(0, series.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            y = series[:, block] * to_percent[block]
            if mean is not None:
                y -= np.outer(known, mean[block])
            left = solved.residual_squares(glm.whiten(y, rows, rho))
            sigma[block] = np.sqrt(np.maximum(left, 0.0) / solved.freedom)
        return sigma

    def _in_mask_order(self, values: NDArray[Float]) -> NDArray[Float]:
        if self._groups is None or self._groups.order is None:
            return values
        ordered = np.empty_like(values)
        ordered[:, self._groups.order] = values
        return ordered

    def _used(self) -> NDArray[np.float32]:
        return self._differences[: self._count]

    def _to_percent(self) -> FloatArray:
        """Return percent per unit, 100 / mean of the run so far; zero for voxels without signal."""
        baseline = self._first + self._sum / self._count
        bright = baseline > self._dim
        return np.asarray(np.where(bright, 100.0 / np.where(bright, baseline, 1.0), 0.0))

    def _motion_regressors(self) -> FloatArray:
        motion, changes = self._motion[: self._count].swapaxes(0, 1)
        return design.motion_regressors(motion, changes, self._confounds)


def new_series(
    settings: EstimateSettings,
    mask: NDArray[np.bool_],
    t_r_s: float,
    slice_times_s: FloatArray | None,
    voxels: VoxelModel | None,
) -> RunSeries:
    """Begin a run as the settings say.

    Parameters
    ----------
    settings : EstimateSettings
    mask : array of shape (i, j, k), bool
    t_r_s : float
        Repetition time, seconds.
    slice_times_s : array of shape (k,) or None
    voxels : VoxelModel or None
    """
    timing = design.RunTiming(
        t_r_s=t_r_s,
        phase_s=design.reference_moment(t_r_s, slice_times_s),
        high_pass_hz=settings.high_pass_hz,
        hrf=settings.hrf,
    )
    phases_s = None
    if settings.slice_timing == "slices" and slice_times_s is not None and len(slice_times_s):
        phases_s = slice_times_s[np.argwhere(mask)[:, 2]]
    return RunSeries(
        timing,
        confounds=settings.confounds,
        separate=settings.single_trial == "lss",
        groups=group(int(mask.sum()), voxels, phases_s),
    )


def _rho(of_group: Group, scales: Scales | None) -> float:
    if scales is not None:
        return scales.rho
    return 0.0 if of_group.rho is None else of_group.rho
