"""Category scores that are linear in a response, beside the encoding model's: discriminant analysis and token ridge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration import regression
from calibration.shrinkage import ledoit_wolf, ledoit_wolf_amount
from calibration.targets import Targets

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearHead:
    """Log-likelihood of categories, up to a constant of each response.

    Attributes
    ----------
    weights : ndarray of shape (c, v), float32
    intercept : ndarray of shape (c,), float64
    """

    weights: Float32
    intercept: Float64

    def __call__(self, responses: Float32) -> Float64:
        """Scores (n, c) of responses (n, v)."""
        return np.asarray(responses @ self.weights.T + self.intercept, dtype=np.float64)


def no_head(n_categories: int, n_voxels: int) -> LinearHead:
    """Return a head that cannot tell categories apart."""
    return LinearHead(weights=np.zeros((n_categories, n_voxels), np.float32), intercept=np.zeros(n_categories))


def discriminant_head(responses: Float32, category: Ints, n_categories: int) -> LinearHead:
    """Linear discriminant analysis, covariance shrunk after Ledoit & Wolf, in the span of the trials.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
    category : ndarray of shape (n,), int64
        One that no trial shows has the score of the average response.
    n_categories : int

    Returns
    -------
    LinearHead
        That of the covariance ``(1 - a) W + a m I`` of deviations from category means, W their second moment and m its
        mean diagonal; nothing of size (v, v) is made.
    """
    centre = responses.mean(0)
    means = np.repeat(centre[None], n_categories, axis=0)
    for place in np.unique(category):
        means[place] = responses[category == place].mean(0)
    within = (responses - means[category]).astype(np.float64)
    n, n_voxels = within.shape
    gram = within @ within.T / n
    amount, level = ledoit_wolf_amount(gram, n_voxels)
    floor = amount * level
    if not floor > 0:
        return no_head(n_categories, n_voxels)
    strengths, axes = np.linalg.eigh(gram)
    kept = strengths > 1e-10 * strengths[-1]
    strengths, axes = strengths[kept], axes[:, kept]
    directions = axes.T @ within / np.sqrt(n * strengths)[:, None]  # orthonormal, (r, v)
    apart = (means - centre).astype(np.float64)
    along = apart @ directions.T
    shrunk = (1 - amount) * strengths
    weights = (apart - (along * (shrunk / (shrunk + floor))) @ directions) / floor
    intercept = -0.5 * (weights * apart).sum(1) - weights @ centre
    return LinearHead(weights=weights.astype(np.float32), intercept=intercept)


def token_head(responses: Float32, targets: Targets, groups: Ints, category: Ints, prototypes: Float64) -> LinearHead:
    """Predict the tokens by ridge, and compare with the prototypes of the categories.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
    targets : Targets
        Of the same trials.
    groups : ndarray of shape (n,), int64
        Trials with the same number are held out together; at least three.
    category : ndarray of shape (n,), int64
    prototypes : ndarray of shape (c, k)
        Components of each category's mean tokens.
    """
    choice, held_out = regression.choose(responses, targets, groups, regression.sizes_for(responses.shape[1]))
    gain = regression.gains(held_out, targets.components)
    held_out = gain * held_out
    power = np.square(targets.components).sum(0)
    slope = np.divide((held_out * targets.components).sum(0), power, out=np.zeros(len(power)), where=power > 0)
    live = (slope > 0) & (held_out.std(0) > 0)
    slope = np.where(live, slope, 0.0)
    expected = slope * prototypes
    weighted = expected @ _precision(held_out - expected[category], live)
    fitted = regression.fit(responses, targets, choice)
    weights = np.zeros((len(prototypes), responses.shape[1]))
    weights[:, fitted.voxels] = weighted @ (gain * fitted.weights).T / fitted.scale
    intercept = weighted @ (gain * fitted.intercept) - 0.5 * (weighted * expected).sum(1)
    return LinearHead(weights=weights.astype(np.float32), intercept=intercept - weights[:, fitted.voxels] @ fitted.mean)


def _precision(residuals: Float64, live: NDArray[np.bool_]) -> Float64:
    """Inverse of the shrunk second moment of the live columns; 0 elsewhere."""
    out = np.zeros((len(live), len(live)))
    if live.any():
        columns = np.flatnonzero(live)
        scale = np.sqrt(np.square(residuals[:, columns]).mean(0))
        shrunk = ledoit_wolf(residuals[:, columns] / scale)
        out[np.ix_(columns, columns)] = np.linalg.inv(shrunk) / np.outer(scale, scale)
    return out
