"""How well the trials so far are told apart, quickly enough for a learning curve, with a null that is exactly chance.

Leaving out single trials does not do: the mean of the other trials leans away from the one left out, a ridge without
signal predicts little else, and ranks fall to 0 where chance is .5. Here folds of several stimuli are left out, what is
predicted is a deviation from the mean of the other trials, and a trial's stimulus is compared with those of its own
fold only. Where betas do not depend on what was shown, two trials of a fold could as well have shown each other's
stimulus; that turns their comparison round, so that its mean is .5 whatever the number of trials. One ridge of all
voxels, with a penalty in which no label has part, gives weights that serve shuffled labels too: these tell how far
chance strays from .5, with all that makes trials depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.statistics import p_value

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

N_SHUFFLES = 999
_AT_ONCE = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Null:
    """What labels that mean nothing give.

    Attributes
    ----------
    percentiles : ndarray of shape (s,)
        Held-out percentiles of shuffled labels.
    """

    percentiles: Float64

    def p_value(self, percentile: float) -> float:
        """How often shuffled labels come out at least as high."""
        return p_value(self.percentiles, percentile)

    def interval(self, percentile: float) -> tuple[float, float]:
        """95 % interval, as wide as shuffled labels spread: without signal it holds .5 in 95 % of cases."""
        low, high = np.quantile(self.percentiles, [0.025, 0.975])
        return max(0.0, float(percentile - (high - 0.5))), min(1.0, float(percentile - (low - 0.5)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """Trials held out together.

    Attributes
    ----------
    held, rest : ndarray of int64
        Trials of the fold, and the others.
    weights : ndarray of shape (len(held), len(rest))
        A held-out trial is predicted as this sum of what the others showed; each row sums to 0.
    """

    held: Ints
    rest: Ints
    weights: Float64


def make_folds(betas: NDArray[np.floating[Any]], parts: list[Ints]) -> list[Fold]:
    """Fit a ridge without each part, with a penalty of the kernel's mean eigenvalue.

    Parameters
    ----------
    betas : ndarray of shape (n, v)
        Voxels that do not vary, or lack an estimate, are left out.
    parts : list of ndarray
        Trials of each fold; at least two.
    """
    known = betas[:, np.isfinite(betas).all(0)]
    deviation = known.std(0)
    chosen = known[:, deviation > 0]
    standard = (chosen - chosen.mean(0)) / deviation[deviation > 0]
    kernel = (standard @ standard.T).astype(np.float64)
    found = []
    for held in parts:
        rest = np.setdiff1d(np.arange(len(betas)), held)
        own, cross = kernel[np.ix_(rest, rest)], kernel[np.ix_(held, rest)]
        mean = own.mean(0)
        own = own - mean - mean[:, None] + mean.mean()
        cross = cross - mean
        cross -= cross.mean(1, keepdims=True)
        penalty = float(np.trace(own)) / len(rest)
        weights = np.linalg.solve(own + max(penalty, 1e-12) * np.eye(len(rest)), cross.T).T
        found.append(Fold(held=held, rest=rest, weights=weights - weights.mean(1, keepdims=True)))
    return found


def percentile(folds: list[Fold], likeness: Float64, shown: Ints) -> Float64:
    """Held-out mean percentile rank of the shown among the stimuli of the same fold; .5 is chance, 1 perfect.

    Parameters
    ----------
    folds : list of Fold
    likeness : ndarray of shape (m, m)
        Inner products of the stimuli's tokens, see `ridge.centred`.
    shown : ndarray of shape (..., n), int64
        Stimulus of each trial; further axes hold other cases.

    Returns
    -------
    ndarray of shape (...)
        Not a number where no fold holds two stimuli.
    """
    cosine = likeness / np.sqrt(np.maximum(np.diag(likeness), 1e-30))

    def scored(fold: Fold) -> tuple[Float64, Ints]:
        held, rest = shown[..., fold.held], shown[..., fold.rest]
        return fold.weights @ cosine[rest[..., :, None], held[..., None, :]], held

    return pooled(scored(fold) for fold in folds)


def pooled(parts: Iterable[tuple[Float64, Ints]]) -> Float64:
    """Share of comparisons that the stimulus shown wins, over all folds; a tie counts half.

    Parameters
    ----------
    parts : iterable of (ndarray of shape (..., f, f), ndarray of shape (..., f))
        Score of each trial of a fold under the stimulus of each, and these stimuli.
    """
    won, compared = np.float64(0), np.float64(0)
    for scores, labels in parts:
        own = np.diagonal(scores, axis1=-2, axis2=-1)[..., None]
        others = labels[..., :, None] != labels[..., None, :]
        won = won + ((own > scores) & others).sum((-2, -1)) + 0.5 * ((own == scores) & others).sum((-2, -1))
        compared = compared + others.sum((-2, -1))
    return np.asarray(np.divide(won, compared, out=np.full(np.shape(won), np.nan), where=compared > 0))


def shuffled(folds: list[Fold], likeness: Float64, shown: Ints, runs: Ints | None, rng: np.random.Generator) -> Null:
    """Measure labels that mean nothing.

    Parameters
    ----------
    folds : list of Fold
    likeness : ndarray of shape (m, m)
    shown : ndarray of shape (n,), int64
    runs : ndarray of shape (n,), int64, or None
        Trials change labels within these; None gives each stimulus, all of its trials, the tokens of another.
    rng : numpy.random.Generator
    """
    found = []
    for first in range(0, N_SHUFFLES, _AT_ONCE):
        n = min(_AT_ONCE, N_SHUFFLES - first)
        found.append(percentile(folds, likeness, np.stack([_shuffle(shown, runs, rng) for _ in range(n)])))
    return Null(percentiles=np.concatenate(found))


def _shuffle(shown: Ints, runs: Ints | None, rng: np.random.Generator) -> Ints:
    if runs is None:
        return np.asarray(rng.permutation(int(shown.max()) + 1)[shown])
    out = shown.copy()
    for run in np.unique(runs):
        rows = np.flatnonzero(runs == run)
        out[rows] = rng.permutation(shown[rows])
    return out
