"""From maps and noise to pictures: a Gaussian model of responses, turned round.

With ``y = M_0 + M' z + e`` and ``e ~ N(0, S)``, all that a response says of ``z`` is ``M S^-1 (y - M_0)``: one vector
as long as ``z``, whatever the number of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from calibration.encoding.maps import Maps
from rtdecode.decode.score.content import penalty

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LEAST_NOISE = 0.05
"""Least variance of a voxel's own noise, in units of that of its responses."""
_TRIALS_OF_UNIT = 4.0
"""Responses are scaled to variance 1, which is held with the weight of so many trials."""
_KEPT = 0.95  # of the shared components of residuals, which look stronger than they are


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Noise:
    """Covariance of the noise, ``S = shared' shared + diag(own)``.

    Attributes
    ----------
    shared : ndarray of shape (r, v), float32
    own : ndarray of shape (v,), float32
    """

    shared: Float32
    own: Float32

    def whitener(self) -> Float32:
        """Matrix W (r, v) with ``S^-1 = diag(1 / own) - W' W``."""
        scaled = self.shared / self.own
        within = np.eye(len(scaled)) + (scaled @ self.shared.T).astype(np.float64)
        return np.linalg.solve(np.linalg.cholesky(within), scaled).astype(np.float32)


def noise_models(maps: Maps, ranks: Sequence[int], rest: Float32 | None = None) -> list[Noise]:
    """Make noise models of some ranks.

    Parameters
    ----------
    maps : Maps
        Whose residuals show the noise that comes with pictures, and what of the maps is not known.
    ranks : sequence of int
        At most as many as there are trials and stretches of rest.
    rest : ndarray of shape (m, v), float32, or None
        Responses where nothing was shown, of mean 0.
    """
    shown = maps.residuals if rest is None else np.concatenate([maps.residuals, rest])
    n = np.float32(len(shown))
    strongest = _leading_axes((shown @ shown.T).astype(np.float64), max(ranks)).astype(np.float32)
    components = _KEPT * (strongest.T @ shown) / np.sqrt(np.maximum(n, 1))
    unseen = (n - len(maps.residuals)) * maps.unknown  # rest does not show it
    total = ((np.square(shown).sum(0) + unseen + _TRIALS_OF_UNIT) / (n + _TRIALS_OF_UNIT)).astype(np.float32)
    explained = np.vstack([np.zeros_like(total), np.cumsum(np.square(components), axis=0)])
    return [
        Noise(shared=components[:rank], own=np.maximum(total - explained[rank], LEAST_NOISE).astype(np.float32))
        for rank in ranks
    ]


def _leading_axes(matrix: Float64, count: int) -> Float64:
    """Eigenvectors (n, count) of the largest eigenvalues of a symmetric matrix (n, n), the largest first."""
    if not count:
        return np.empty((len(matrix), 0))
    _, axes = linalg.eigh(matrix, subset_by_index=[len(matrix) - count, len(matrix) - 1])
    return np.asarray(axes[:, ::-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inverse:
    """What a response says of the components of a picture.

    Attributes
    ----------
    projection : ndarray of shape (k, v), float32
        ``M S^-1``.
    information : ndarray of shape (k, k), float64
        ``M S^-1 M'``.
    mean : ndarray of shape (v,), float32
        Response to the average picture.
    """

    projection: Float32
    information: Float64
    mean: Float32

    def evidence(self, responses: Float32) -> Float64:
        """Linear part (n, k) of the log-likelihood of components, given responses (n, v)."""
        return np.asarray((responses - self.mean) @ self.projection.T, dtype=np.float64)

    def scores(self, responses: Float32, components: Float64) -> Float64:
        """Log-likelihood (n, m), up to a constant of each response, of pictures (m, k)."""
        return self.evidence(responses) @ components.T - penalty(self.information, components)

    def estimator(self) -> Float32:
        """Matrix (k, v) from a response to the expected components of a picture, standard normal beforehand."""
        within = self.information + np.eye(len(self.information))
        return np.asarray(np.linalg.solve(within, self.projection), dtype=np.float32)

    def tempered(self, factor: float) -> Inverse:
        """Return one that is more sure by a factor."""
        return replace(self, projection=np.float32(factor) * self.projection, information=factor * self.information)

    def blurred(self, share: float) -> Inverse:
        """Return one that expects maps to err together, as if each picture came with a random one of that variance."""
        factor = np.linalg.inv(np.eye(len(self.information)) + share * self.information)
        return replace(
            self,
            projection=factor.astype(np.float32) @ self.projection,
            information=factor @ self.information,
        )


def invert(maps: Maps, noise: Noise) -> Inverse:
    """Turn maps round."""
    weights = maps.weights
    whitener = noise.whitener()
    projection = np.asarray(weights / noise.own - (weights @ whitener.T) @ whitener, np.float32)
    return Inverse(projection=projection, information=(projection @ weights.T).astype(np.float64), mean=maps.constant)


def chosen_voxels(maps: Maps, voxels: NDArray[np.int64] | slice) -> Maps:
    """Return the maps of some voxels only."""
    return Maps(
        weights=maps.weights[:, voxels],
        constant=maps.constant[voxels],
        residuals=maps.residuals[:, voxels],
        unknown=maps.unknown[voxels],
    )


def mixed(inverses: Sequence[Inverse], weights: Float64) -> Inverse:
    """Return one whose scores are the weighted sum of the others', of the same voxels or the first of them."""
    widest = max(inverses, key=lambda one: len(one.mean))
    projection = np.zeros_like(widest.projection)
    information = np.zeros_like(widest.information)
    for weight, one in zip(weights, inverses, strict=True):
        projection[:, : one.projection.shape[1]] += np.float32(weight) * one.projection
        information += weight * one.information
    return Inverse(projection=projection, information=information, mean=widest.mean)
