"""A fixed space of pictures, in which the maps of different people can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

COUNTS = (20, 28)
"""Components of each token group; more do not decode better."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureSpace:
    """Principal components of tokens over many pictures, each token group apart.

    Attributes
    ----------
    basis : ndarray of shape (k, m)
        Flattened tokens, less their mean, to components of mean 0 and variance 1 over pictures.
    token_mean : ndarray of shape (m,)
    spectrum : ndarray of shape (k,)
        Part of the variance of its group that each component stands for; they add up to 1 at most.
    """

    basis: Float64
    token_mean: Float64
    spectrum: Float64

    def __call__(self, tokens: NDArray[np.floating]) -> Float64:
        """Components (n, k) of pictures, given their tokens (n, ...)."""
        return np.asarray((tokens.reshape(len(tokens), self.basis.shape[1]) - self.token_mean) @ self.basis.T)


def learn_picture_space(
    tokens: NDArray[np.floating], groups: Sequence[slice], counts: Sequence[int] = COUNTS
) -> PictureSpace:
    """Learn the space from a pool of pictures.

    Parameters
    ----------
    tokens : ndarray of shape (n, ...)
    groups : sequence of slice
        Token groups, as slices of the flattened tokens.
    counts : sequence of int
        Components of each group, fewer than there are pictures.
    """
    flat = tokens.reshape(len(tokens), -1).astype(np.float64)
    mean = flat.mean(0)
    rows, spectrum = [], []
    for group, count in zip(groups, counts, strict=True):
        _, strengths, axes = np.linalg.svd(flat[:, group] - mean[group], full_matrices=False)
        basis = np.zeros((count, flat.shape[1]))
        basis[:, group] = axes[:count] * (np.sqrt(len(flat)) / strengths[:count, None])
        rows.append(basis)
        spectrum.append(np.square(strengths[:count]) / np.square(strengths).sum() / len(groups))
    return PictureSpace(basis=np.concatenate(rows), token_mean=mean, spectrum=np.concatenate(spectrum))
