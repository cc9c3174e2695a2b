"""Dual ridge regression with exact leave-out predictions.

With more voxels than trials everything happens in the n x n kernel of the trials. One eigendecomposition serves every
penalty. Leave-out predictions of a linear smoother with residual matrix R = I - H are exact without refitting: leaving
out trials G, the residual is inv(R_GG) (R z)_G (Cook & Weisberg 1982); H holds the intercept, that is the constant
vector, apart from the penalised directions. Counting the constant among those, as if it were penalised, sends the
penalty to its floor and makes the leave-out figures false.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

N_PENALTIES = 20
_RELATIVE_PENALTIES = (-3.0, 3.0)


class Kernel:
    """Inner products of betas, one row more per trial.

    Parameters
    ----------
    scale : ndarray of shape (v,), float32
        Betas are divided by this; fixed while the kernel grows.
    """

    def __init__(self, scale: NDArray[np.float32]) -> None:
        self._scale = scale
        self._rows = np.empty((0, len(scale)), dtype=np.float32)
        self._values = np.empty((0, 0))
        self._n = 0

    def append(self, beta: NDArray[np.floating[Any]]) -> None:
        """Add a trial (v,); a voxel without an estimate counts as 0."""
        row = np.nan_to_num(beta.astype(np.float32) / self._scale, nan=0.0, posinf=0.0, neginf=0.0)
        n = self._n
        if n == len(self._rows):
            room = max(32, 2 * n)
            rows, values = np.empty((room, len(row)), dtype=np.float32), np.zeros((room, room))
            rows[:n], values[:n, :n] = self._rows, self._values
            self._rows, self._values = rows, values
        self._rows[n] = row
        products = self._rows[: n + 1] @ row
        self._values[n, : n + 1] = products
        self._values[: n + 1, n] = products
        self._n += 1

    @property
    def values(self) -> Float64:
        """Inner products (n, n)."""
        return self._values[: self._n, : self._n].copy()


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

    def fitted(self, penalty: float) -> Float64:
        """Predictions (n, k) of the trials themselves."""
        shrink = self.values / (self.values + penalty)
        return np.asarray(self.mean + self.vectors @ (shrink[:, None] * self._projected))

    def residual_matrix(self, penalty: float) -> Float64:
        """I - H (n, n), H with the intercept."""
        n = len(self.values)
        shrink = self.values / (self.values + penalty)
        return np.asarray(np.eye(n) - 1 / n - (self.vectors * shrink) @ self.vectors.T)


def penalties(spectrum: Spectrum) -> Float64:
    """Grid of penalties, relative to the mean eigenvalue."""
    return np.asarray(spectrum.values.mean() * np.logspace(*_RELATIVE_PENALTIES, N_PENALTIES))


def leave_out(
    kernel: Float64, targets: Float64, groups: Sequence[int] | NDArray[np.int64], importance: Float64
) -> tuple[Float64, float]:
    """Predict each trial from the others, with the penalty whose leave-out error is smallest.

    Parameters
    ----------
    kernel : ndarray of shape (n, n)
        Inner products of centred trials.
    targets : ndarray of shape (n, k)
    groups : sequence of int
        Trials with the same number are held out together: repeats of a stimulus, or runs.
    importance : ndarray of shape (k,)
        Weight of each target in the choice of the penalty.

    Returns
    -------
    held_out : ndarray of shape (n, k)
    penalty : float

    Raises
    ------
    ValueError
        If there are fewer than two groups.
    """
    labels = np.asarray(groups)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(members) < 2:
        raise ValueError("expected at least two groups to hold out in turn")
    spectrum = Spectrum(kernel, targets)
    found = []
    for penalty in penalties(spectrum):
        residual = targets - spectrum.fitted(penalty)
        held_out = _held_out(targets, residual, spectrum.residual_matrix(penalty), members)
        found.append((float((np.square(targets - held_out) * importance).sum()), held_out, float(penalty)))
    _, held_out, penalty = min(found, key=lambda entry: entry[0])
    return held_out, penalty


def _held_out(
    targets: Float64, residual: Float64, residual_matrix: Float64, members: list[NDArray[np.int64]]
) -> Float64:
    if len(members) == len(targets):
        return np.asarray(targets - residual / np.diag(residual_matrix)[:, None])
    out = np.empty_like(targets)
    for rows in members:
        out[rows] = targets[rows] - np.linalg.solve(residual_matrix[np.ix_(rows, rows)], residual[rows])
    return out
