"""Whether a session decodes at all: bets against "it does not", whose winnings may be looked at after any trial.

Where a session does not decode, the product of the factors has an expected value of at most 1 whenever one stops, so
that it reaches 20 in at most 5 % of sessions (Ville's inequality).

After Shafer, "Testing by betting", JRSS A 184, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

CLAIM = 20.0
"""Reached, a session may be said to decode."""
_STAKE = 0.5
_CONFIDENCE = 0.99
_CAUTION = 0.1
"""Share of the bet that is kept out, so that no single trial can lose all."""


def rate_limit(level: float, n_null: int) -> float:
    """Upper 99 % limit of how often a gate at this p-value opens without content, given its independent nulls.

    All trials share these nulls: if they happen to be low, the gate opens too often in every trial of the session.
    """
    allowed = int(np.floor(level * (n_null + 1) + 1e-9))
    if allowed == 0:
        return float(1 - (1 - _CONFIDENCE) ** (1 / (n_null + 1)))
    return float(beta.ppf(_CONFIDENCE, allowed, n_null + 1 - allowed))


def claimed(before: float, supported: bool, limit: float) -> float:
    """Return what a session has won after one more trial; what has reached `CLAIM` is not put at risk again."""
    return before if before >= CLAIM else before * support_factor(supported, limit)


def support_factor(supported: bool, limit: float) -> float:
    """Bet on one trial that needs no truth: that the gate opens more often than it may."""
    return 1 + _STAKE * ((1 / limit if supported else 0.0) - 1)


def announced_factor(probabilities: NDArray[np.floating], category: int, remaining: Sequence[int]) -> float:
    """Bet on one trial whose category is announced: that the decoder knows it better than what was left to show.

    Parameters
    ----------
    probabilities : ndarray of shape (c,)
        Of each category, by the decoder.
    category : int
        The one announced.
    remaining : sequence of int
        Categories of the trials of the run that were still to come, this one included: where each is shown once a run,
        guesses that do not repeat would win against equal odds.
    """
    share = np.bincount(np.asarray(remaining), minlength=len(probabilities)) / len(remaining)
    bet = np.asarray(probabilities, np.float64) * share
    bet = bet / bet.sum() if bet.sum() > 0 else share
    return float(((1 - _CAUTION) * bet[category] + _CAUTION * share[category]) / share[category])
