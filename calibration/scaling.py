"""Betas of different voxels on one scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import CalibrationError

Float32 = NDArray[np.float32]


class Scaling:
    """Brings betas to mean 0 and variance 1 over the calibration trials; a voxel without an estimate to 0.

    Parameters
    ----------
    betas : ndarray of shape (n, v), float32

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Those that have an estimate in every trial and vary.
    mean, scale : ndarray of shape (s,), float32

    Raises
    ------
    CalibrationError
        There is no such voxel.
    """

    def __init__(self, betas: Float32) -> None:
        known = np.flatnonzero(np.isfinite(betas).all(0))
        self.voxels = known[np.ptp(betas[:, known], axis=0) > 0]
        if len(self.voxels) == 0:
            raise CalibrationError(
                "no voxel has an estimate in every calibration trial and varies; check the mask and the events"
            )
        chosen = betas[:, self.voxels]
        self.mean = chosen.mean(0, dtype=np.float64).astype(np.float32)
        self.scale = chosen.std(0, dtype=np.float64).astype(np.float32)

    def __call__(self, betas: Float32) -> Float32:
        """Betas (m, v) of all voxels to responses (m, s) of those in use."""
        return np.asarray(np.nan_to_num((betas[:, self.voxels] - self.mean) / self.scale, posinf=0, neginf=0))
