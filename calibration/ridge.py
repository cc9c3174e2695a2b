"""Dual ridge regression.

With more voxels than trials everything happens in the n x n kernel of the trials. One eigendecomposition serves every
penalty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

N_PENALTIES = 20
_RELATIVE_PENALTIES = (-3.0, 3.0)


def centred(kernel: Float64) -> Float64:
    """Kernel of the same trials with their mean subtracted."""
    mean = kernel.mean(0)
    return np.asarray(kernel - mean - mean[:, None] + mean.mean())


class Spectrum:
    """Eigendecomposition of a kernel, which serves every penalty.

    Parameters
    ----------
    kernel : ndarray of shape (n, n)
        Inner products of centred trials.
    targets : ndarray of shape (n, k)
    """

    def __init__(self, kernel: Float64, targets: Float64) -> None:
        values, self.vectors = np.linalg.eigh(kernel)
        self.values = np.clip(values, 0, None)
        self.mean = targets.mean(0)
        self._projected = self.vectors.T @ (targets - self.mean)

    def dual(self, penalty: float) -> Float64:
        """Dual coefficients (n, k): weights are ``X_centred' @ dual``, the intercept is the mean of the targets."""
        return np.asarray(self.vectors @ (self._projected / (self.values + penalty)[:, None]))

    def predict(self, cross: Float64, grid: Float64) -> Float64:
        """Predictions (len(grid), m, k) of other trials.

        Parameters
        ----------
        cross : ndarray of shape (m, n)
            Inner products of the other trials, minus the mean of these, with these.
        grid : ndarray of shape (g,)
            Penalties.
        """
        rotated = cross @ self.vectors
        return np.stack([self.mean + (rotated / (self.values + penalty)) @ self._projected for penalty in grid])


def penalties(spectrum: Spectrum) -> Float64:
    """Grid of penalties, relative to the mean eigenvalue."""
    return np.asarray(spectrum.values.mean() * np.logspace(*_RELATIVE_PENALTIES, N_PENALTIES))
