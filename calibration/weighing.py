"""Scores of several heads in one, and how sure its best category is: both from trials that the heads have not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR_VARIANCE = 4.0
_TRIALS_OF_PRIOR = 20.0


def weigh(scores: Float64, category: Ints) -> Float64:
    """Weight, not below 0, of each head whose weighted sum makes the true categories most likely.

    The first head is trusted beforehand, as much as `_TRIALS_OF_PRIOR` trials can say; the others must earn a place.

    Parameters
    ----------
    scores : ndarray of shape (h, n, c)
        Held-out log-likelihoods by each head.
    category : ndarray of shape (n,), int64
    """
    alone = np.array([_best(one[None], category, np.zeros(1), 0.0)[0] for one in scores])
    tempered = alone[:, None, None] * scores
    start = np.zeros(len(scores))
    start[0] = 1.0
    return alone * _best(tempered, category, start, _TRIALS_OF_PRIOR)


def _best(scores: Float64, category: Ints, start: Float64, strength: float) -> Float64:
    """Weights that make the true categories most likely, held near `start`."""
    rows = np.arange(len(category))
    unit = 1 / np.maximum(scores.std((1, 2)), 1e-12)  # brings the weights of heads of any scale to one size

    def loss(relative: Float64) -> tuple[float, Float64]:
        weights = relative * unit
        logs = log_softmax(np.tensordot(weights, scores, 1), axis=1)
        expected = (np.exp(logs) * scores).sum(2)
        slope = (scores[:, rows, category] - expected).sum(1)
        away = weights - start
        total = -logs[rows, category].sum() + 0.5 * strength * float(away @ away)
        return float(total), (strength * away - slope) * unit

    found = minimize(loss, start / unit, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(scores))
    return np.asarray(found.x * unit)


def weighed_apart(scores: Float64, category: Ints, parts: Sequence[Ints]) -> Float64:
    """Weighted sum (n, c) of the heads, each fold's with weights that the other folds chose."""
    out = np.empty(scores.shape[1:])
    for part in parts:
        rest = np.setdiff1d(np.arange(len(category)), part)
        out[part] = np.tensordot(weigh(scores[:, rest], category[rest]), scores[:, part], 1)
    return out


def fit_logistic(x: Float64, right: NDArray[np.bool_]) -> Float64:
    """Intercept and slope, not below 0, of a logistic model; a weak normal prior keeps few trials from being sure."""
    scale = float(x.std()) or 1.0
    y = right.astype(np.float64)

    def loss(coefficients: Float64) -> float:
        logit = coefficients[0] + coefficients[1] * x / scale
        likelihood = float((np.logaddexp(0, logit) - y * logit).sum())
        return likelihood + 0.5 * float(np.square(coefficients).sum()) / _PRIOR_VARIANCE

    def gradient(coefficients: Float64) -> Float64:
        error = expit(coefficients[0] + coefficients[1] * x / scale) - y
        return np.array([error.sum(), (error * x / scale).sum()]) + coefficients / _PRIOR_VARIANCE

    found = minimize(loss, np.zeros(2), jac=gradient, method="L-BFGS-B", bounds=[(None, None), (0, None)])
    return np.array([found.x[0], found.x[1] / scale])
