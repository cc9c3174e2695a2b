"""How good, and how sure: accuracies with intervals and permutation tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 9_999


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_p(true: Sequence[str], predicted: Sequence[str], rng: np.random.Generator) -> float:
    """Return how often shuffled truth gives at least this accuracy: (1 + count) / (1 + 9,999)."""
    names = sorted({*true, *predicted})
    codes = np.array([names.index(t) for t in true])
    answers = np.array([names.index(p) for p in predicted])
    observed = (codes == answers).sum()
    shuffled = rng.permuted(np.tile(codes, (PERMUTATIONS, 1)), axis=1)
    return float((1 + ((shuffled == answers).sum(axis=1) >= observed).sum()) / (1 + PERMUTATIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identification:
    """Naming the shown picture among candidates.

    Attributes
    ----------
    trials, pool : int
    top1, percentile : float
        Share of trials with the shown picture ranked first; mean percentile rank (chance .5).
    permutation_p : float
        For `percentile`: which picture belongs to which trial is shuffled 9,999 times.
    """

    trials: int
    pool: int
    top1: float
    percentile: float
    permutation_p: float


def mid_ranks(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of every candidate for every trial, 1 is best, ties and nan in the middle.

    Parameters
    ----------
    similarity : array of shape (n_trials, n_candidates)
    """
    values = np.nan_to_num(similarity, nan=-np.inf)
    above = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return np.asarray(above + (equal + 1) / 2, np.float64)


def identification(
    similarity: NDArray[np.float64], truth: NDArray[np.intp], rng: np.random.Generator
) -> Identification:
    """Score identification and test it by permutation.

    Parameters
    ----------
    similarity : array of shape (n_trials, n_candidates)
    truth : array of shape (n_trials,)
        Column of the picture that was shown.
    rng : Generator
    """
    n, pool = similarity.shape
    ranks = mid_ranks(similarity)
    percentiles = 1.0 - (ranks - 1) / max(pool - 1, 1)
    rows = np.arange(n)
    observed = percentiles[rows, truth].mean()
    shuffled = rng.permuted(np.tile(truth, (PERMUTATIONS, 1)), axis=1)
    null = percentiles[rows, shuffled].mean(axis=1)
    return Identification(
        trials=n,
        pool=pool,
        top1=float((ranks[rows, truth] == 1.0).mean()),
        percentile=float(observed),
        permutation_p=float((1 + (null >= observed - 1e-12).sum()) / (1 + PERMUTATIONS)),
    )
