"""Candidates of a pool in a better order: by many tokens where one embedding has found them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.statistics import row_cosines

CANDIDATES = 16
"""So many are compared by their tokens, as published."""


def reranked(
    found: Sequence[tuple[str, float]], query: NDArray[np.floating[Any]], tokens: Mapping[str, NDArray[Any]]
) -> list[tuple[str, float]]:
    """Order pictures by the cosine of their tokens with those of a query, all tokens of a picture as one vector.

    As MindEye1 searches large pools: its final-layer embedding finds candidates, its hidden tokens choose among them.

    Parameters
    ----------
    found : sequence of (str, float)
        What a pool's `nearest` gives.
    query : ndarray of shape (t, d)
    tokens : mapping of str to ndarray of shape (t, d)
        Of the pictures of the pool; those that are not in it keep their order behind the others.

    Returns
    -------
    list of (str, float)
        Names and cosines, best first: of the tokens, and behind them what `found` told.
    """
    known = [name for name, _ in found if name in tokens]
    rest = [pair for pair in found if pair[0] not in tokens]
    if not known:
        return rest
    rows = np.stack([np.asarray(tokens[name], np.float32).reshape(-1) for name in known])
    cosines = row_cosines(np.asarray(query, np.float32).reshape(-1), rows)
    order = np.argsort(-cosines, kind="stable")
    return [*((known[i], float(cosines[i])) for i in order), *rest]
