"""Second moments of few rows, shrunk toward a multiple of the identity.

Ledoit & Wolf (2004), J. Multivariate Analysis 88: 365-411.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def ledoit_wolf_amount(gram: Float64, width: int) -> tuple[float, float]:
    """How far to shrink, and the mean diagonal to shrink toward.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Inner products of the `n` rows, of mean 0, divided by `n`.
    width : int
        Number of columns of the rows.

    Returns
    -------
    amount : float
        From 0 to 1.
    level : float
        Mean diagonal of the second moment.
    """
    n = len(gram)
    level = float(np.trace(gram)) / width
    square = float(np.square(gram).sum())
    distance = square - width * level**2
    noise = (float(np.square(np.diag(gram)).sum()) * n - square) / n
    amount = 1.0 if distance <= 0 else float(np.clip(noise / distance, 0, 1))
    return amount, level


def ledoit_wolf(values: Float64) -> Float64:
    """Second moment (k, k) of rows (n, k) of mean 0, shrunk."""
    amount, level = ledoit_wolf_amount(values @ values.T / len(values), values.shape[1])
    return np.asarray((1 - amount) * values.T @ values / len(values) + amount * level * np.eye(values.shape[1]))
