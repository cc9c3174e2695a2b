"""What finished runs teach about the next ones: response lag, scales of signal and noise, mean response.

All by marginal likelihood of the model that the betas come from; no label of a stimulus is ever looked at.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from rtdecode.estimate.design import RunTiming, scaled_drift, trial_regressors
from rtdecode.estimate.glm import Expectation, Scales
from rtdecode.records import TrialEvent

FloatArray = NDArray[np.float64]
_log = logging.getLogger(__name__)

LAGS_S = np.arange(-6.0, 4.01, 0.5)
_LAG_SD_S = 2.0
_LAG_SPACING = 0.4
_LAG_VOXELS = 2048
_RESPONSIVE = 0.25
_ENOUGH_VOXELS = 500
_REMEMBERED_RUNS = 6
_FIRST_DRIFT_PER_S = 0.01
_FIRST_MOTION_PER_MM2 = 1.0
# Not learned: in rapid designs the responses themselves look like autocorrelation, and the likelihood
# cannot tell.
_RHO = 0.3
_KNOWN_MEAN = 0.1  # variance of a run's mean response around that of earlier runs, of that of trials
_BOUNDS = ((1e-4, 1e3), (1e-6, 1.0), (1e-6, 1e3))
FREE = 1e3
"""Variance that leaves a mean response to the data."""
_BLOCK = 4096  # voxels
_ITERATIONS, _STOP = 20, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinishedRun:
    """A completed run.

    Attributes
    ----------
    timing : RunTiming
    events : tuple of TrialEvent
    rows : array of shape (t,), int64
        Indices of the volumes in use.
    motion : array of shape (t, 6) or (t, 0)
        Motion regressors.
    percent : array of shape (t, v), float32
        Percent of the baseline, about zero.
    """

    timing: RunTiming
    events: tuple[TrialEvent, ...]
    rows: NDArray[np.int64]
    motion: FloatArray
    percent: NDArray[np.float32]


class Parts:
    """The covariance of one run's series as a function of the scales."""

    def __init__(self, run: FinishedRun, lag_s: float) -> None:
        trials, _ = trial_regressors(run.timing, run.rows, run.events, lag_s)
        self.total = trials.sum(1)
        drift = scaled_drift(run.timing, run.rows)
        self._products = [part @ part.T for part in (trials, drift, run.motion)]
        segment = np.cumsum(np.diff(run.rows, prepend=run.rows[0]) > 1)
        together = np.equal.outer(segment, segment)
        self._steps = np.where(together, np.abs(np.subtract.outer(run.rows, run.rows)), np.inf)

    def covariance(self, scales: Scales) -> FloatArray:
        """Return the covariance over time, shape (t, t), in units of the noise's innovation variance."""
        total = scales.rho**self._steps / (1.0 - scales.rho**2)
        total += scales.mean * np.outer(self.total, self.total)
        factors = (scales.trial, scales.drift_per_s, scales.motion_per_mm2)
        for product, factor in zip(self._products, factors, strict=True):
            total += factor * product
        return np.asarray(total)


def quadratic_forms(covariance: FloatArray, series: NDArray[np.floating]) -> tuple[FloatArray, float]:
    """Return y' V^-1 y per column, the level projected out, and log |V| as restricted likelihood has it."""
    factor, lower = cho_factor(covariance, lower=True)
    level = solve_triangular(factor, np.ones(len(series)), lower=lower)
    weight = float(level @ level)
    forms = np.empty(series.shape[1])
    for start in range(0, len(forms), _BLOCK):  # float64 copies of a block of voxels at a time
        block = slice(start, start + _BLOCK)
        white = solve_triangular(factor, series[:, block].astype(np.float64), lower=lower)
        forms[block] = (white**2).sum(0) - (level @ white) ** 2 / weight
    return np.maximum(forms, 1e-12), 2.0 * float(np.log(np.diag(factor)).sum()) + math.log(weight)


def lag_likelihood(run: FinishedRun, scales: Scales) -> FloatArray:
    """Return the log likelihood of each of `LAGS_S`, voxels counted as far as they are independent.

    The variance of each voxel is profiled out. Neighbouring voxels tell the same story: the sum over voxels
    is scaled to their effective number, the participation ratio of their covariance. Lags near the spacing of
    the trials, at which one trial's response would be taken for its neighbour's, are ruled out.
    """
    step = max(1, run.percent.shape[1] // _LAG_VOXELS)
    series = run.percent[:, ::step].astype(np.float64)
    series = series[:, series.std(0) > 0]
    if series.shape[1] == 0:
        return np.zeros(len(LAGS_S))
    unit = series / series.std(0)
    spectrum = np.linalg.eigvalsh(unit @ unit.T)
    effective = spectrum.sum() ** 2 / (spectrum**2).sum()
    onsets = np.sort([event.onset_s for event in run.events])
    spacing = float(np.diff(onsets).min()) if len(onsets) > 1 else math.inf
    values = []
    for lag_s in LAGS_S:
        if abs(lag_s) > _LAG_SPACING * spacing:
            values.append(-math.inf)
            continue
        forms, log_determinant = quadratic_forms(Parts(run, lag_s).covariance(scales), series)
        n = len(series) - 1
        values.append(-0.5 * (n * np.log(forms).mean() + log_determinant) * effective)
    return np.array(values)


class Prior:
    """What is known before a run.

    Parameters
    ----------
    learn : bool
        False: nothing, ever; trials are fitted by least squares.
    learn_lag : bool
        Whether the response lag is among the things learned.
    known : Expectation or None
        What a calibration taught: it holds for every run, so that all betas are of the kind the decoder was
        fitted on.
    scratch : Path or None
        Folder for the series of finished runs, which are large; None keeps them in memory.
    """

    def __init__(
        self, *, learn: bool, learn_lag: bool, known: Expectation | None = None, scratch: Path | None = None
    ) -> None:
        self._known = known
        self._learn = learn
        self._learn_lag = learn_lag
        self._scratch = scratch
        self._added = 0
        self._runs: list[tuple[FinishedRun, Path | None]] = []
        self._lag_likelihood = -0.5 * (LAGS_S / _LAG_SD_S) ** 2
        self._scales: Scales | None = None
        self._means: dict[int, FloatArray] = {}
        self.lag_s = 0.0 if known is None else known.lag_s

    def expectation(self, energy: float) -> Expectation:
        """Return what is to be expected of a run.

        Parameters
        ----------
        energy : float
            Of the regressor of a typical trial. Before anything is learned a trial's deviation is taken to
            have as much of it as the noise.
        """
        if self._known is not None:
            return self._known
        if not self._learn:
            return Expectation(scales=None)
        scales = self._scales or first_scales(energy)
        return Expectation(scales=scales, lag_s=self.lag_s, mean_response=self.mean_response())

    @property
    def learned(self) -> Expectation | None:
        """What has been learned; None before the first run that teaches anything."""
        if self._scales is None and self._learn:
            return self._known
        return Expectation(scales=self._scales, lag_s=self.lag_s, mean_response=self.mean_response())

    def scales(self, run: FinishedRun) -> Scales:
        """Return the scales learned so far, or those to begin with in a run like `run`."""
        return self._scales or first_scales(run.timing.typical_energy(run.events))

    def add(self, number: int, run: FinishedRun) -> None:
        """Learn from a finished run, and from its number know it again."""
        scales = self.expectation(run.timing.typical_energy(run.events)).scales
        if scales is None or self._known is not None:
            return
        if self._learn_lag:
            self._lag_likelihood += lag_likelihood(run, scales)
            self.lag_s = float(LAGS_S[np.argmax(self._lag_likelihood)])
        runs = self._remember(run)
        self._scales = fit_scales(runs, self.lag_s, scales)
        numbers = [*self._means, number][-len(runs) :]
        self._means = {n: mean_response(r, self._scales, self.lag_s) for n, r in zip(numbers, runs, strict=True)}

    def mean_response(self, *, without: int | None = None) -> NDArray[np.float32] | None:
        """Return each voxel's mean response in the latest runs, (v,); None before there is one.

        Parameters
        ----------
        without : int or None
            A run that is left out if there are others: it differs less from a mean that it has a part in than a later
            run will.
        """
        means = [mean for number, mean in self._means.items() if number != without] or list(self._means.values())
        return np.mean(means, axis=0).astype(np.float32) if means else None

    def _remember(self, run: FinishedRun) -> list[FinishedRun]:
        """Return the latest runs with their series; between calls these are on disk if there is room for them."""
        self._added += 1
        path = self._scratch and self._scratch / f"series-{self._added % _REMEMBERED_RUNS}.npy"
        if path is not None:
            try:
                np.save(path, run.percent)
            except OSError as error:
                _log.warning("series of a finished run stays in memory: %s", error)
                path = None
            else:
                run = replace(run, percent=np.zeros((0, 0), np.float32))
        self._runs = [*self._runs, (run, path)][-_REMEMBERED_RUNS:]
        return [r if at is None else replace(r, percent=np.load(at, mmap_mode="r")) for r, at in self._runs]


def first_scales(energy: float = 1.0) -> Scales:
    """Return the scales to begin with, for trials whose regressor has this energy."""
    return Scales(
        trial=1.0 / energy,
        mean=1.0 / energy,
        drift_per_s=_FIRST_DRIFT_PER_S,
        motion_per_mm2=_FIRST_MOTION_PER_MM2,
        rho=_RHO,
    )


def fit_scales(runs: Sequence[FinishedRun], lag_s: float, start: Scales) -> Scales:
    """Maximise the restricted likelihood of the scales of trials, drift and motion.

    Pooled over the quarter of the voxels, 500 at most, in which the response explains most, each brought to
    equal noise.

    Parameters
    ----------
    runs : sequence of FinishedRun
        Of the same voxels.
    lag_s : float
    start : Scales
        Where to start; `rho` is kept.

    References
    ----------
    H. D. Patterson & R. Thompson, "Recovery of inter-block information when block sizes are unequal",
    Biometrika 58, 1971.
    """
    parts = [Parts(run, lag_s) for run in runs]
    series = [run.percent for run in runs]
    nothing = replace(start, trial=0.0, mean=0.0)
    gain = np.zeros(series[0].shape[1])
    for part, y in zip(parts, series, strict=True):
        gain += np.log(quadratic_forms(part.covariance(nothing), y)[0])
        gain -= np.log(quadratic_forms(part.covariance(start), y)[0])
    count = min(max(1, int(_RESPONSIVE * len(gain))), _ENOUGH_VOXELS)
    chosen = np.argsort(-gain, kind="stable")[:count]
    moments = [_second_moment(part, y[:, chosen], start) for part, y in zip(parts, series, strict=True)]

    def scales(logs: FloatArray) -> Scales:
        trial, drift, motion = np.exp(logs).tolist()
        return Scales(
            trial=trial,
            mean=_KNOWN_MEAN * trial,
            drift_per_s=drift,
            motion_per_mm2=motion,
            rho=start.rho,
        )

    def cost(logs: FloatArray) -> float:
        tried = replace(scales(logs), mean=FREE)
        return sum(_deviance(part.covariance(tried), m) for part, m in zip(parts, moments, strict=True))

    first = np.log([start.trial, start.drift_per_s, start.motion_per_mm2])
    bounds = [(math.log(low), math.log(high)) for low, high in _BOUNDS]
    first = np.clip(first, *np.transpose(bounds))
    found = minimize(cost, first, bounds=bounds, method="L-BFGS-B", options={"maxiter": _ITERATIONS, "ftol": _STOP})
    return scales(found.x)


def _second_moment(part: Parts, series: NDArray[np.float32], scales: Scales) -> FloatArray:
    """Return the mean over voxels of y y', each voxel scaled to unit noise, shape (t, t)."""
    use = series[:, series.std(0) > 0].astype(np.float64)
    forms, _ = quadratic_forms(part.covariance(scales), use)
    unit = use / np.sqrt(forms / (len(use) - 1))
    return np.asarray(unit @ unit.T / max(1, unit.shape[1]))


def _deviance(covariance: FloatArray, moment: FloatArray) -> float:
    """Return -2 log restricted likelihood per voxel, noise variance profiled out."""
    factored = cho_factor(covariance, lower=True)
    n = len(moment) - 1
    inverse = cho_solve(factored, np.column_stack([moment, np.ones(n + 1)]))
    level = inverse[:, -1]
    weight = float(level.sum())
    quadratic = float(np.trace(inverse[:, :-1]) - level @ moment @ level / weight)
    determinant = 2.0 * float(np.log(np.diag(factored[0])).sum()) + math.log(weight)
    return determinant + n * math.log(max(quadratic, 1e-12) / n)


def mean_response(run: FinishedRun, scales: Scales, lag_s: float) -> FloatArray:
    """Estimate each voxel's mean response in one run, percent, shape (v,), by generalised least squares."""
    part = Parts(run, lag_s)
    covariance = part.covariance(replace(scales, mean=0.0))
    fixed = np.column_stack([np.ones(len(part.total)), part.total])
    inverse = cho_solve(cho_factor(covariance, lower=True), fixed)
    return np.asarray(np.linalg.solve(fixed.T @ inverse, inverse.T @ run.percent)[1])
