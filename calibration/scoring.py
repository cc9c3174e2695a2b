"""What held-out predictions tell about later ones: reliability, spread, and what may be called evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from rtdecode.decode.score.evidence import Evidence, margin
from rtdecode.decode.score.retrieval import Scorer

Float64 = NDArray[np.float64]

ALPHA = 0.02
"""Level of the test that opens evidence. Trials of cross-validation are not independent, which permutations of the
finished scores do not know: on pure noise in 32 blocks, this level is passed in 4 % of cases (.05 in 10 %).
"""
N_PERMUTATIONS = 1999
"""Shuffles of that test."""
N_NOISE = 999
_PRIOR_VARIANCE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """How far predictions can be trusted, component by component.

    Attributes
    ----------
    gain : ndarray of shape (k,)
        Best factor from prediction to truth, 0 to 1; 0 switches a component off.
    r2 : ndarray of shape (k,)
        Explained variance after that factor, not below 0.
    """

    gain: Float64
    r2: Float64


def reliability(held_out: Float64, truth: Float64) -> Reliability:
    """Measure held-out predictions (n, k) against the truth (n, k)."""
    wanted = truth - truth.mean(0)
    power = np.square(held_out).sum(0)
    gain = np.divide((held_out * wanted).sum(0), power, out=np.zeros(len(power)), where=power > 0)
    gain = np.clip(gain, 0, 1)
    total = np.square(wanted).sum(0)
    left = np.square(wanted - gain * held_out).sum(0)
    r2 = np.clip(1 - np.divide(left, total, out=np.ones(len(total)), where=total > 0), 0, 1)
    return Reliability(gain=gain, r2=r2)


def make_scorer(predicted: Float64, truth: Float64, category: NDArray[np.int64], prototypes: Float64) -> Scorer:
    """Learn the spread of predictions about stimuli and about categories.

    Parameters
    ----------
    predicted : ndarray of shape (n, k)
        Held-out predictions.
    truth : ndarray of shape (n, k)
        Components of the stimuli shown.
    category : ndarray of shape (n,), int64
        Their categories.
    prototypes : ndarray of shape (c, k)
        Components of the category prototypes.
    """
    power = np.square(truth).sum(0)
    slope = np.divide((predicted * truth).sum(0), power, out=np.zeros(len(power)), where=power > 0)
    live = (slope > 0) & (predicted.std(0) > 0)
    slope = np.where(live, slope, 0.0)
    return Scorer(
        slope=slope.astype(np.float32),
        precision=_precision(predicted - slope * truth, live),
        category_precision=_precision(predicted - slope * prototypes[category], live),
        prototypes=prototypes.astype(np.float32),
    )


def _precision(residuals: Float64, live: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Inverse of the shrunk second moment of the live columns; 0 elsewhere."""
    out = np.zeros((len(live), len(live)))
    if live.any():
        columns = np.flatnonzero(live)
        scale = np.sqrt(np.square(residuals[:, columns]).mean(0))
        shrunk = ledoit_wolf(residuals[:, columns] / scale)
        out[np.ix_(columns, columns)] = np.linalg.inv(shrunk) / np.outer(scale, scale)
    return out.astype(np.float32)


def ledoit_wolf(values: Float64) -> Float64:
    """Second moment of rows of mean 0, shrunk toward a multiple of the identity.

    Ledoit & Wolf (2004), J. Multivariate Analysis 88: 365-411.

    Parameters
    ----------
    values : ndarray of shape (n, k)

    Returns
    -------
    ndarray of shape (k, k)
    """
    n, k = values.shape
    moment = values.T @ values / n
    level = np.trace(moment) / k
    distance = np.square(moment - level * np.eye(k)).sum()
    noise = (np.square(np.square(values).sum(1)).sum() / n - np.square(moment).sum()) / n
    amount = 1.0 if distance == 0 else float(np.clip(noise / distance, 0, 1))
    return np.asarray((1 - amount) * moment + amount * level * np.eye(k))


def make_evidence(
    scores: Float64,
    category: NDArray[np.int64],
    predicted: Float64,
    scorer: Scorer,
    p_value: float,
    rng: np.random.Generator,
) -> Evidence:
    """Calibrate the margin between the best two categories.

    Parameters
    ----------
    scores : ndarray of shape (n, c)
        Cross-fitted category scores of the calibration trials.
    category : ndarray of shape (n,), int64
        Their true categories.
    predicted : ndarray of shape (n, k)
        Held-out predictions; noise with the covariance of the calibration betas, ``X_centred' g / sqrt(n)`` with
        ``g ~ N(0, 1)``, gives predictions that are the same mixture of these.
    scorer : Scorer
        The one that will be used.
    p_value : float
        Of identification on held-out trials; above `ALPHA` evidence is chance, always.
    rng : numpy.random.Generator
    """
    noise = rng.standard_normal((N_NOISE, len(predicted))) @ (predicted - predicted.mean(0)) / np.sqrt(len(predicted))
    return Evidence(
        coefficients=fit_logistic(margin(scores), scores.argmax(1) == category).astype(np.float32),
        null_margins=np.sort(margin(scorer.categories(noise))).astype(np.float32),
        signal=np.array([p_value <= ALPHA], dtype=np.uint8),
    )


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
