"""How many components of the pictures a visit's trials support: as many as held-out trials are told best with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration import standing
from calibration.encoding.encoder import PriorOf, log_shares

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNTS = (8, 16, 32, 64)
"""Of each token group, that are compared."""
USUAL = 32
"""Where nothing can be held out, where no other number is surely better, and of the figures that are told after every
trial: a number that held-out trials have chosen would flatter these."""
_DOUBT = 1.0
"""Of the numbers that are worse than the best by no more than so many standard errors over trials, the one nearest to
`USUAL` is taken: few trials would choose by chance."""
_TEMPERATURES = np.logspace(-2, 1, 31)

Described = Callable[[int], tuple[Float64, list[PriorOf]]]
"""Number of components to these (n, k), and what is known of maps of them beforehand."""


def supported(responses: Float32, described: Described, parts: Sequence[Ints], shown: Ints) -> int:
    """Choose the number of components of each token group.

    Each fold is decoded by an encoding model of the others with the noise model that mostly serves. What counts is the
    log-likelihood of the pictures shown among those of their fold, at the temperature that is best for that number: how
    sure a model is is chosen later.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
        Standardised.
    described : callable
        See `Described`.
    parts : sequence of ndarray of int64
        Trials of each fold.
    shown : ndarray of shape (n,), int64

    Returns
    -------
    int
        Of `COUNTS`; `USUAL` where there are too few folds, or where no other is surely better.
    """
    if len(parts) < 2:
        return USUAL
    fewest = len(responses) - max(len(part) for part in parts)
    found: dict[int, Float64] = {}
    seen = -1
    for count in COUNTS:
        components, priors = described(count)
        if count > USUAL and (count >= fewest or components.shape[1] == seen):
            break  # more than there are trials, or than the pictures vary in
        seen = components.shape[1]
        found[count] = told(standing.held_out(responses, components, priors, parts, shown))
    best = max(found, key=lambda count: float(found[count].sum()))
    lead = {count: found[best] - one for count, one in found.items()}
    as_good = [count for count, by in lead.items() if by.mean() <= _DOUBT * by.std() / np.sqrt(len(by))]
    return min(as_good, key=lambda count: abs(np.log(count / USUAL)))


def told(held: standing.HeldOut) -> Float64:
    """Log-likelihood (n,) of the pictures shown, each among those of its fold, at the temperature best for all."""
    by_fold = []
    for scores, shown in zip(held.scores, held.shown, strict=True):
        _, first, places = np.unique(shown, return_index=True, return_inverse=True)
        by_fold.append(log_shares(scores[:, first], places, _TEMPERATURES))
    likelihood = np.concatenate(by_fold, axis=1, dtype=np.float64)
    return np.asarray(likelihood[int(likelihood.sum(1).argmax())])
