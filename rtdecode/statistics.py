"""Statistics that several parts share: intervals, ranks, permutations, running moments and cosines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, permutation_test, rankdata

Float64 = NDArray[np.float64]
_HALF_MANTISSA, _SINGLE_MANTISSA = 10, 23
_BIASES = 127 - 15
_LARGEST_HALF = float(np.finfo(np.float16).max)

_TOLERANCE = 1e-12
"""By so much a value may be below another that it is to reach: sums in another order differ in their last digits."""


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion.

    Parameters
    ----------
    hits, n : int
        Successes among `n` trials; without trials the interval is 0 to 1.

    Raises
    ------
    ValueError
        `hits` is not from 0 to `n`.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22(158), 1927.
    """
    if n == 0:
        return 0.0, 1.0
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def bootstrap_interval(values: NDArray[Any], rng: np.random.Generator, *, resamples: int) -> tuple[float, float]:
    """95 % percentile interval of a mean, by resampling.

    Parameters
    ----------
    values : ndarray of shape (n,)
    rng : Generator
    resamples : int
        Draws of `n` values, with repetition, made one after another.

    Raises
    ------
    ValueError
        There are no values.

    References
    ----------
    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7(1), 1979.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("bootstrap: expected at least one value, got none")
    # The draws of scipy.stats.bootstrap, which refuses a single value.
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def mid_ranks(scores: NDArray[Any]) -> Float64:
    """Rank every score of a row among the others; ties share the middle of their places.

    Parameters
    ----------
    scores : ndarray of shape (..., n)
        Higher is better. A score that is not a number ties with every other.

    Returns
    -------
    ndarray of shape (..., n), float64
        From 1, the best, to n.
    """
    values = np.asarray(scores, np.float64)
    undefined = np.isnan(values)
    ranks = rankdata(-values, axis=-1, nan_policy="omit") + 0.5 * undefined.sum(-1, keepdims=True)
    return np.asarray(np.where(undefined, (values.shape[-1] + 1) / 2, ranks), np.float64)


def percentile_ranks(scores: NDArray[Any]) -> Float64:
    """Share of the other scores of a row that each beats, a tie counting half: 1 is best, chance is .5.

    Parameters
    ----------
    scores : ndarray of shape (..., n)
        As in `mid_ranks`; a single one beats all there are.
    """
    return np.asarray(1.0 - (mid_ranks(scores) - 1) / max(np.shape(scores)[-1] - 1, 1))


def p_value(null: NDArray[Any], observed: float) -> float:
    """How often chance reaches what was observed, itself counted among its cases so that it is never 0.

    Parameters
    ----------
    null : ndarray of shape (n,)
        What chance gave.
    observed : float

    Returns
    -------
    float
        From 1 / (1 + n) to 1.

    References
    ----------
    B. Phipson & G. K. Smyth, "Permutation p-values should never be zero", SAGMB 9(1), 2010.
    """
    reached = np.asarray(null, np.float64) >= observed - _TOLERANCE
    return float((1 + reached.sum()) / (1 + len(reached)))


def permutation_p(
    values: NDArray[Any], truth: NDArray[np.integer[Any]], rng: np.random.Generator, *, resamples: int
) -> float:
    """P-value of the mean value of the true columns against shuffled truths.

    Parameters
    ----------
    values : ndarray of shape (n_trials, n_columns)
        What each trial would count under each answer: a percentile rank, or whether it was named.
    truth : ndarray of shape (n_trials,)
        Column of each trial's true answer.
    rng : Generator
    resamples : int
        Shuffles, drawn one after another; where there are no more orders than that, each is taken once and the
        p-value is exact.

    Returns
    -------
    float
        1 where there is nothing to shuffle.
    """
    if len(truth) < 2:
        return 1.0
    trials = np.arange(len(truth))

    def mean(labels: NDArray[np.integer[Any]], axis: int) -> Float64:
        return np.asarray(values[trials, labels].mean(axis), np.float64)

    found = permutation_test(
        (np.asarray(truth),),
        mean,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=resamples,
        alternative="greater",
        rng=rng,
    )
    return float(found.pvalue)


def cosines(queries: NDArray[Any], candidates: NDArray[Any]) -> Float64:
    """Cosine of every pair, in float64.

    Parameters
    ----------
    queries : ndarray of shape (m, d)
    candidates : ndarray of shape (n, d)

    Returns
    -------
    ndarray of shape (m, n), float64
        Not a number where a vector is zero.
    """
    with np.errstate(invalid="ignore"):
        one, other = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (np.asarray(queries, np.float64), np.asarray(candidates, np.float64))
        )
    return np.asarray(one @ other.T)


def single(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return values in single precision, exactly; half precision three times faster than numpy turns it.

    The bits of a half are moved to where a single has them, and the exponent is brought to its bias.
    """
    if values.dtype != np.float16:
        return np.asarray(values, np.float32)
    bits = np.asarray(values).view(np.int16).astype(np.int32)
    bits <<= _SINGLE_MANTISSA - _HALF_MANTISSA
    bits &= np.int32(-0x70002000)  # the sign was drawn out over the bits between
    found = bits.view(np.float32)
    found *= np.float32(2.0**_BIASES)
    if found.size and max(float(found.max()), -float(found.min())) > _LARGEST_HALF:  # inf or not a number
        return np.asarray(values, np.float32)
    return found


def row_cosines(
    query: NDArray[Any], rows: NDArray[Any], *, norms: NDArray[np.float32] | None = None, at_once: int = 1
) -> NDArray[np.float32]:
    """Cosine of one vector and each of many, in float32; so many rows are in memory as are taken at once.

    Parameters
    ----------
    query : ndarray of shape (d,)
    rows : ndarray of shape (n, d)
        Of any float type, and may be mapped from the disk.
    norms : ndarray of shape (n,), float32, or None
        Lengths of the rows, where they are known.
    at_once : int

    Returns
    -------
    ndarray of shape (n,), float32
        Not a number where a vector is zero.
    """
    with np.errstate(invalid="ignore"):
        unit = np.asarray(query, np.float32)
        unit = unit / np.linalg.norm(unit)
        products, lengths = [], []
        for start in range(0, len(rows), at_once):
            block = single(rows[start : start + at_once])
            products.append(block @ unit)
            if norms is None:
                lengths += [np.linalg.norm(row) for row in block]
        return np.asarray(np.concatenate(products) / (lengths if norms is None else norms), np.float32)


def column_correlations(one: NDArray[Any], other: NDArray[Any]) -> Float64:
    """Correlation of each column of two arrays whose columns have mean 0; 0 where one does not vary.

    Parameters
    ----------
    one, other : ndarray of shape (n, k)

    Returns
    -------
    ndarray of shape (k,), float64
    """
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
    return np.asarray(np.where(scale > 0, (left * right).sum(0) / np.where(scale > 0, scale, 1.0), 0.0))


@dataclass(slots=True, eq=False)
class RunningMoments:
    """Mean and spread of arrays that come one after another, none of which is kept.

    Attributes
    ----------
    count : int
    mean, sum_square : ndarray of float64
        Mean so far, and sum of the squared deviations from it; empty before the first array.

    References
    ----------
    B. P. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4(3),
    1962.
    """

    count: int = 0
    mean: Float64 = field(default_factory=lambda: np.zeros(0))
    sum_square: Float64 = field(default_factory=lambda: np.zeros(0))

    def add(self, values: NDArray[Any]) -> None:
        """Take an array, of the same shape as those before.

        Raises
        ------
        ValueError
            It has another shape.
        """
        values = np.asarray(values, np.float64)
        if not self.count:
            self.mean, self.sum_square = np.zeros_like(values), np.zeros_like(values)
        if values.shape != self.mean.shape:
            raise ValueError(f"moments: expected an array of shape {self.mean.shape}, got {values.shape}")
        self.count += 1
        change = values - self.mean
        self.mean += change / self.count
        self.sum_square += change * (values - self.mean)

    @property
    def deviation(self) -> Float64:
        """Standard deviation of a sample, of one array less than there are; 0 of a single one."""
        return np.asarray(np.sqrt(self.sum_square / max(1, self.count - 1)))
