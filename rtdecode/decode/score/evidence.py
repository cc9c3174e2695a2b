"""What calibration taught of when to say no: p-values of a beta, sets of categories, and how sure a category is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from rtdecode.decode.score.from_tensors import from_tensors
from rtdecode.statistics import p_value

Float64 = NDArray[np.float64]

CEILING = 0.999
OUTLIER = 0.01
"""Of calibration's own responses, so many are called outliers."""
SIGNAL_LEVEL = 0.05
"""p-value up to which a response is unlike rest."""
CATEGORY = "category"
"""What the named category is called among the attributes of a picture."""
SURE = 0.8
"""Probability from which a category is supported whatever its p-value."""
COVERAGE = 0.9
"""Share of trials whose category is in the set of plausible ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Tensors of ``evidence.safetensors``, all learned from trials that had no part in the decoder that judged them.

    Attributes
    ----------
    coefficients : ndarray of shape (2,), float32
        Intercept and slope of a logistic model of "right" on the margin between the best two categories.
    signal : ndarray of shape (1,), uint8
        0 where calibration did not identify above chance: nothing is supported then.
    content : ndarray of shape (n,), float32
        The statistic of content of calibration's trials.
    content_null, category_null : ndarray of shape (m,), float32
        The two statistics of responses without a picture in them (see `calibration.nulls`).
    group_null : ndarray of shape (groups, m), float32
        The same for the content of each token group that has a name (`Candidates.group_names`).
    rest : ndarray of shape (r,), float32
        How far stretches of rest lie from rest toward the average response; none where trials follow each other fast.
    distances : ndarray of shape (n,), float32
        How far calibration's responses lie from the average one.
    surprise : ndarray of shape (n,), float32
        Minus log probability of the true category of calibration's trials.
    surprise_category : ndarray of shape (n,), int64
        That category.
    level : ndarray of shape (1,), float64
        p-value of content up to which a trial is supported.
    independent_nulls : ndarray of shape (1,), int64
        How many of the responses without a picture are independent of each other.
    """

    coefficients: NDArray[np.float32]
    signal: NDArray[np.uint8]
    content: NDArray[np.float32]
    content_null: NDArray[np.float32]
    category_null: NDArray[np.float32]
    group_null: NDArray[np.float32]
    rest: NDArray[np.float32]
    distances: NDArray[np.float32]
    surprise: NDArray[np.float32]
    surprise_category: NDArray[np.int64]
    level: NDArray[np.float64]
    independent_nulls: NDArray[np.int64]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def probability(self, margin: float, chance: float) -> float:
        """Probability that the best category is right: from `chance` to `CEILING`."""
        if not self.signal[0]:
            return chance
        intercept, slope = (float(c) for c in self.coefficients)
        logit = np.clip(intercept + slope * margin, -30, 30)
        return float(np.clip(1 / (1 + np.exp(-logit)), chance, CEILING))

    def p_content(self, content: float) -> float:
        """How often a response without a picture in it looks at least as much like one with a picture."""
        return p_value(self.content_null, content)

    def p_category(self, certainty: float) -> float:
        """How often a response without a picture in it points at least as surely to a category."""
        return p_value(self.category_null, certainty)

    def p_groups(self, contents: Sequence[float]) -> list[float]:
        """How often a response without a picture in it says as much of each token group."""
        return [p_value(null, one) for null, one in zip(self.group_null, contents, strict=True)]

    def p_motion(self, distance: float) -> float:
        """How often a response of calibration lies at least so far from the average one."""
        return p_value(self.distances, distance)

    def p_signal(self, signal: float | None) -> float | None:
        """How often rest looks at least as much like a response; None where calibration had no rest."""
        return None if signal is None else p_value(self.rest, signal)

    def is_outlier(self, p_motion: float) -> bool:
        """Whether a response lies further out than those of calibration: further than all, where these are few."""
        return not p_motion > max(OUTLIER, 1 / (1 + len(self.distances)))

    def refusal(self, p_content: float, p_motion: float, p_signal: float | None) -> str:
        """Why a trial may not be shown as decoded; empty where it may."""
        if not self.signal[0]:
            return "calibration found no signal"
        if self.is_outlier(p_motion):
            return "the response is an outlier, as after a movement"
        if p_signal is not None and not p_signal <= SIGNAL_LEVEL:
            return "the response looks like rest"
        return "" if p_content <= float(self.level[0]) else "no picture was found in the response"

    def unknown(self, p_category: float, probability: float, p_groups: Mapping[str, float]) -> tuple[str, ...]:
        """Tell what of a supported trial's picture is not supported: `CATEGORY`, and names of token groups.

        A category is supported where responses without a picture seldom point so surely to one, and where it is right
        with a `probability` of `SURE` or more: where few nulls are strict, as differences of blocks are, the first
        alone would leave names open that are as good as sure.
        """
        level = float(self.level[0])
        named = p_category <= level or probability >= SURE
        return (*(() if named else (CATEGORY,)), *(name for name, p in p_groups.items() if not p <= level))

    def plausible(self, probabilities: Float64) -> NDArray[np.bool_]:
        """Which categories (c,) are in the set that holds the true one in `COVERAGE` of trials of each category.

        Conformal sets by category (Mondrian: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005),
        each limit interpolated between two of calibration's surprises (Beran & Hall, "Interpolated nonparametric
        prediction intervals and confidence intervals", 1993), where conformal sets take the upper one and cover more.
        """
        surprise = -np.log(np.maximum(probabilities, 1e-300))
        limits = np.array([self._most_surprise(category) for category in range(len(surprise))])
        return np.asarray(surprise <= limits)

    def _most_surprise(self, category: int) -> float:
        """Surprise that `COVERAGE` of trials of a category stay below; none is too much where these are too few."""
        own = self.surprise[self.surprise_category == category]
        if COVERAGE * (len(own) + 1) > len(own):
            return np.inf
        return float(np.quantile(own, COVERAGE, method="weibull"))


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
