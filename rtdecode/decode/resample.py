"""Resizing pictures as the published evaluations do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def bilinear(pictures: NDArray[Any], px: int) -> NDArray[np.float32]:
    """Resize to a square by bilinear interpolation between pixel centres, without blurring first.

    That is torchvision 0.16's Resize of a tensor, and so what the published figures rest on; later versions blur before
    they shrink.

    Parameters
    ----------
    pictures : ndarray of shape (..., h, w)
    px : int
        Height and width wanted.

    Returns
    -------
    ndarray of shape (..., px, px), float32
    """
    rows, columns = _weights(pictures.shape[-2], px), _weights(pictures.shape[-1], px)
    out: NDArray[np.float32] = rows @ np.asarray(pictures, dtype=np.float32) @ columns.T
    return out


def _weights(n: int, px: int) -> NDArray[np.float32]:
    """Matrix (px, n) whose rows mix the two neighbours of a new pixel's centre; the edge is repeated."""
    at = np.clip((np.arange(px) + 0.5) * n / px - 0.5, 0, None)
    left = np.minimum(at.astype(np.int64), n - 1)
    right = np.minimum(left + 1, n - 1)
    share = at - left
    weights = np.zeros((px, n))
    np.add.at(weights, (np.arange(px), left), 1 - share)
    np.add.at(weights, (np.arange(px), right), share)
    return weights.astype(np.float32)
