"""Arithmetic on arrays that decoders of betas share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import EngineError

Float32 = NDArray[np.float32]


def check_betas(betas: NDArray[np.floating[Any]], voxels: int) -> Float32:
    """Return betas (voxels,) or (repeats, voxels) as rows.

    Raises
    ------
    EngineError
        They are of another mask, or not all finite.
    """
    rows = np.atleast_2d(np.ascontiguousarray(betas, dtype=np.float32))
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != voxels:
        raise EngineError(
            f"expected betas of {voxels} voxels, the mask this participant was fitted on, got shape {np.shape(betas)}"
        )
    if wrong := int(np.sum(~np.isfinite(rows))):
        raise EngineError(
            f"expected finite betas, got {wrong} of {rows.size} values that are not: leave those voxels out of the "
            "mask, or give them the mean of the calibration"
        )
    return rows


def pixels(picture: NDArray[Any], scale: float = 0.5, shift: float = 0.5) -> Float32:
    """Return a picture in 0..1 of an autoencoder's."""
    return np.asarray(np.clip(picture * scale + shift, 0, 1), dtype=np.float32)


def in_bytes(picture: Float32) -> NDArray[np.uint8]:
    """Turn a picture (3, h, w) in about 0..1 to bytes (h, w, 3)."""
    rounded = np.rint(pixels(picture, 1.0, 0.0) * 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(1, 2, 0))
