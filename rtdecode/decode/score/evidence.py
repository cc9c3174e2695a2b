"""How sure a category judgement may be, learned from held-out calibration trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from rtdecode.decode.score.from_tensors import from_tensors
from rtdecode.statistics import p_value

CEILING = 0.999


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Probability that the best category is right, given its lead over the second.

    Attributes
    ----------
    coefficients : ndarray of shape (2,), float32
        Intercept and slope of a logistic model of "right" on the margin.
    null_margins : ndarray of shape (m,), float32
        Margins of noise betas, ascending.
    signal : ndarray of shape (1,), uint8
        0 where calibration did not identify above chance: then evidence is chance, always.
    """

    coefficients: NDArray[np.float32]
    null_margins: NDArray[np.float32]
    signal: NDArray[np.uint8]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {"coefficients": self.coefficients, "null_margins": self.null_margins, "signal": self.signal}

    def probability(self, margin: float, chance: float) -> float:
        """Probability that the best category is right: from `chance` to `CEILING`."""
        if not self.signal[0]:
            return chance
        intercept, slope = (float(c) for c in self.coefficients)
        logit = np.clip(intercept + slope * margin, -30, 30)
        return float(np.clip(1 / (1 + np.exp(-logit)), chance, CEILING))

    def p_noise(self, margin: float) -> float:
        """How often noise with the covariance of the calibration betas has at least this margin."""
        return p_value(self.null_margins, margin)


def evidence_from(tensors: Mapping[str, NDArray[Any]]) -> Evidence:
    """Read the evidence model from the tensors of a bundle.

    Raises
    ------
    BundleError
        A tensor is missing.
    """
    return from_tensors(Evidence, tensors, part="evidence")


def margin(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Lead of the best over the second best along the last axis; scores that are undefined lead by 0."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    return np.nan_to_num(ordered[..., -1] - ordered[..., -2], nan=0.0)


def tempered(scores: NDArray[Any], top: float) -> NDArray[np.float64]:
    """Probabilities in the order of `scores` whose largest is `top`.

    Parameters
    ----------
    scores : ndarray of shape (c,)
        Log-likelihoods.
    top : float
        Wanted probability of the best, at least 1 / c; where several are exactly best, they share.

    Returns
    -------
    ndarray of shape (c,), float64
        Softmax of the scores at the temperature that gives `top`; they sum to one.
    """
    c = len(scores)
    shifted = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(shifted).all():
        return np.full(c, 1 / c)
    shifted = shifted - shifted.max()
    spread = -shifted.min()
    if spread == 0:
        return np.full(c, 1 / c)

    def softmax(log_beta: float) -> NDArray[np.float64]:
        weights = np.exp(shifted * np.exp(log_beta) / spread)
        return np.asarray(weights / weights.sum())

    low, high = -12.0, 12.0
    if softmax(low).max() >= top:
        return softmax(low)
    if softmax(high).max() <= top:
        return softmax(high)
    return softmax(float(brentq(lambda b: softmax(b).max() - top, low, high, xtol=1e-9)))
