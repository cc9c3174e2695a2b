"""Single-trial responses as linear functionals of the series: beta_j(v) = w_j' y_v.

The weights depend on the design only, so they are computed in float64 for a handful of trials, once per group of
voxels that share a design, and applied to the float32 series in one small product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dgeqrf

from rtdecode.estimate.compiled import compiled

FloatArray = NDArray[np.float64]

_SINGULAR = 1e-10
_LAPACK_BLOCK = 64
_BLOCK = 1024  # voxels whose sums stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scales:
    """How large each part of the signal is, relative to the noise: the model's prior.

    Attributes
    ----------
    trial : float
        Variance of a trial's deviation from the mean response over the innovation variance of the noise.
    mean : float
        The same for the run's mean response around its prior mean.
    drift_per_s : float
        Variance that the drift, a random walk, gains per second.
    motion_per_mm2 : float
        Variance of the effect of one mm (or its rotation at 50 mm) of each motion parameter.
    rho : float
        Lag-one autocorrelation of the noise.
    """

    trial: float
    mean: float
    drift_per_s: float
    motion_per_mm2: float
    rho: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expectation:
    """What is known before a run.

    Attributes
    ----------
    scales : Scales or None
        None: flat priors, trials are fitted by least squares.
    lag_s : float
        How much later than announced the responses come, seconds.
    mean_response : array of shape (v,), float32, or None
        Prior mean of each voxel's mean response, percent; None: zero.
    """

    scales: Scales | None
    lag_s: float = 0.0
    mean_response: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """A linear model of the volumes in use.

    Attributes
    ----------
    rows : array of shape (t,), int64
        Volume indices, increasing; absent ones are missing or censored.
    columns : array of shape (t, p), float64
    precision : array of shape (p,), float64
        Prior precision of each coefficient in units of the noise's innovation variance; 0 is a flat prior.
    """

    rows: NDArray[np.int64]
    columns: FloatArray
    precision: FloatArray


def whiten(x: FloatArray, rows: NDArray[np.int64], rho: float) -> FloatArray:
    """Remove first-order autocorrelation from the rows of `x`.

    Parameters
    ----------
    x : array of shape (t, ...)
    rows : array of shape (t,), int64
        Volume indices: the filter starts again, with factor sqrt(1 - rho^2), after every gap.
    rho : float
    """
    follows = _follows(rows, x.ndim)
    previous = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    return np.asarray(np.where(follows, x - rho * previous, np.sqrt(1.0 - rho**2) * x))


def whiten_transposed(x: FloatArray, rows: NDArray[np.int64], rho: float) -> FloatArray:
    """Apply the transpose of the operator of `whiten`."""
    follows = _follows(rows, x.ndim)
    own = np.where(follows, x, np.sqrt(1.0 - rho**2) * x)
    own[:-1] -= rho * np.where(follows[1:], x[1:], 0.0)
    return np.asarray(own)


def _follows(rows: NDArray[np.int64], ndim: int) -> NDArray[np.bool_]:
    follows = np.concatenate([[False], np.diff(rows) == 1])
    return follows.reshape(-1, *[1] * (ndim - 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """How some coefficients follow from a series.

    Attributes
    ----------
    functionals : array of shape (n, t), float64
        Weights: coefficient = weights @ series.
    spread : array of shape (n,), float64
        Standard deviation of each coefficient over that of the noise's innovations.
    white : array of shape (t, p), float64
        The whitened design, columns scaled.
    root : array of shape (p, p), float64
        Upper triangular root of its normal matrix, priors included.
    freedom : int
        Degrees of freedom of the residual: volumes less coefficients with a flat prior.
    """

    functionals: FloatArray
    spread: FloatArray
    white: FloatArray
    root: FloatArray
    freedom: int

    def residual_squares(self, white_series: FloatArray) -> FloatArray:
        """Return the penalised sum of squares that the model leaves, shape (v,), of a whitened series (t, v).

        Over `freedom` it estimates the innovation variance, by restricted likelihood where there are priors.
        """
        explained = solve_triangular(self.root, self.white.T @ white_series, trans="T", check_finite=False)
        return np.asarray((white_series**2).sum(0) - (explained**2).sum(0))


def weights(design: Design, targets: list[int], rho: float = 0.0) -> FloatArray:
    """Compute only the functionals of `solve`, shape (len(targets), t)."""
    return solve(design, targets, rho).functionals


def solve(design: Design, targets: list[int], rho: float = 0.0) -> Solution:
    """Compute the functionals that estimate some coefficients.

    Posterior means under a Gaussian prior (best linear unbiased predictions for the coefficients with a
    finite precision, generalised least squares for the others), from the QR decomposition of the whitened
    design stacked on the square root of the precision: normal equations lose half the digits, and mid-run
    designs need them.

    Parameters
    ----------
    design : Design
    targets : list of int
        Columns wanted.
    rho : float
        Lag-one autocorrelation of the noise.

    Returns
    -------
    Solution

    Raises
    ------
    numpy.linalg.LinAlgError
        If the volumes do not determine the coefficients.

    References
    ----------
    G. K. Robinson, "That BLUP is a good thing", Statistical Science 6(1), 1991.
    """
    white = whiten(design.columns, design.rows, rho)
    t, p = white.shape
    stacked = np.zeros((t + p, p), order="F")  # as LAPACK wants it: no copy
    stacked[:t] = white
    np.fill_diagonal(stacked[t:], np.sqrt(design.precision))
    norms = np.linalg.norm(stacked, axis=0)
    if not np.all(norms > 0):
        raise np.linalg.LinAlgError("singular design: a column is zero")
    stacked /= norms
    factored, *_ = dgeqrf(stacked, lwork=_LAPACK_BLOCK * p, overwrite_a=True)
    r = np.triu(factored[:p])
    diagonal = np.abs(np.diag(r))
    if diagonal.min() < _SINGULAR * diagonal.max():
        raise np.linalg.LinAlgError("singular design: some columns are sums of others")
    unit = np.zeros((len(norms), len(targets)))
    unit[targets, np.arange(len(targets))] = 1.0 / norms[targets]
    solution = solve_triangular(r, solve_triangular(r, unit, trans="T", check_finite=False), check_finite=False)
    fitted = white @ (solution / norms[:, None])
    return Solution(
        functionals=whiten_transposed(fitted, design.rows, rho).T,
        spread=np.linalg.norm(fitted, axis=0),
        white=white / norms,
        root=r,
        freedom=len(design.rows) - int((design.precision == 0).sum()),
    )


@compiled
def _apply(functionals: FloatArray, series: NDArray[np.float32], first: int, last: int, out: FloatArray) -> None:
    length = series.shape[0]
    fours = length - length % 4
    for start in range(first, last, _BLOCK):
        stop = min(start + _BLOCK, last)
        for j in range(functionals.shape[0]):
            total = out[j, start - first : stop - first]
            for t in range(0, fours, 4):  # four volumes at a time: the sums are loaded and stored less often
                a, b, c, d = functionals[j, t], functionals[j, t + 1], functionals[j, t + 2], functionals[j, t + 3]
                row_a, row_b = series[t, start:stop], series[t + 1, start:stop]
                row_c, row_d = series[t + 2, start:stop], series[t + 3, start:stop]
                for v in range(total.shape[0]):
                    total[v] += (a * row_a[v] + b * row_b[v]) + (c * row_c[v] + d * row_d[v])
            for t in range(fours, length):
                weight = functionals[j, t]
                row = series[t, start:stop]
                for v in range(total.shape[0]):
                    total[v] += weight * row[v]


def apply_weights(
    functionals: FloatArray, series: NDArray[np.float32], first: int = 0, last: int | None = None
) -> FloatArray:
    """Multiply float64 weights with a float32 series, summing in float64 without a copy of the series.

    Parameters
    ----------
    functionals : array of shape (n, t), float64
    series : array of shape (t, v), float32
        C-contiguous.
    first, last : int
        Voxels wanted, the last one excluded; None: all from `first`.

    Returns
    -------
    array of shape (n, last - first), float64
    """
    last = series.shape[1] if last is None else last
    out = np.zeros((len(functionals), last - first))
    _apply(np.ascontiguousarray(functionals), series, first, last, out)
    return out


def separate_trial_design(
    rows: NDArray[np.int64],
    drift: FloatArray,
    motion: FloatArray,
    trials: FloatArray,
    scales: Scales | None,
    trial: int,
) -> tuple[Design, int]:
    """Put the columns together for one trial against all others (least squares separate).

    Parameters
    ----------
    rows, drift, motion, trials
        See `single_trial_design`.
    scales : Scales or None
        Those of drift and motion; trials have flat priors.
    trial : int
        Column of `trials`.

    Returns
    -------
    Design
    int
        Column of the trial.

    References
    ----------
    J. A. Mumford et al., "Deconvolving BOLD activation in event-related designs for multivoxel pattern
    classification analyses", NeuroImage 59(3), 2012.
    """
    others = np.delete(trials, trial, axis=1).sum(1, keepdims=True)
    together = np.hstack([trials[:, [trial]], others[:, others.any(0)]])
    whole, columns = single_trial_design(rows, drift, motion, together, None)
    if scales is None:
        return whole, columns[0]
    precision = whole.precision.copy()
    precision[1 : 1 + drift.shape[1]] = 1.0 / scales.drift_per_s
    precision[1 + drift.shape[1] : columns[0]] = 1.0 / scales.motion_per_mm2
    return Design(rows=rows, columns=whole.columns, precision=precision), columns[0]


def single_trial_design(
    rows: NDArray[np.int64],
    drift: FloatArray,
    motion: FloatArray,
    trials: FloatArray,
    scales: Scales | None,
) -> tuple[Design, list[int]]:
    """Put the columns together.

    Columns: level (flat prior), drift cosines, motion, one per trial and, with `scales`, their sum, so that a
    trial's coefficient is its deviation from the run's mean response.

    Parameters
    ----------
    rows : array of shape (t,), int64
    drift : array of shape (t, k)
        Cosines, each times the standard deviation that a random walk of unit rate gives it.
    motion : array of shape (t, m)
    trials : array of shape (t, n)
    scales : Scales or None
        None: flat priors throughout (least squares, all trials at once).

    Returns
    -------
    Design
    list of int
        Columns of the trials.
    """
    t, n = trials.shape
    parts = [np.ones((t, 1)), drift, motion, trials]
    first = 1 + drift.shape[1] + motion.shape[1]
    if scales is None:
        precision = np.zeros(first + n)
    else:
        parts.append(trials.sum(1, keepdims=True))
        precision = np.concatenate(
            [
                [0.0],
                np.full(drift.shape[1], 1.0 / scales.drift_per_s),
                np.full(motion.shape[1], 1.0 / scales.motion_per_mm2),
                np.full(n, 1.0 / scales.trial),
                [1.0 / scales.mean],
            ]
        )
    design = Design(rows=rows, columns=np.hstack(parts), precision=precision)
    return design, list(range(first, first + n))
