"""What varies from trial to trial and no picture explains: shared between voxels as in real data, and not only broadly.

Of a voxel's variance: a map over the whole brain, the leading directions of the tuning (while pictures are shown),
smooth maps, and of what is left a local part beside one of each voxel alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

GLOBAL_MEAN: Final = 0.13
GLOBAL_SD: Final = 0.25
TUNED_SHARE: Final = 0.15
SMOOTH_SHARE: Final = 0.08
LOCAL_SHARE: Final = 0.3
RANK: Final = 8
"""Of the tuned directions, and of the smooth maps."""
_LOCAL_MM: Final = 3.5
_CUT: Final = 2.5
_MOST_GLOBAL: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialNoise:
    """Noise of single trials.

    Attributes
    ----------
    lasting : array of shape (1 + RANK, v)
        Global and smooth maps: standard normal draws of a moment to noise, at rest as well.
    tuned : array of shape (RANK, v)
        Along the leading tuned directions, while pictures are shown.
    nearby : sparse array of shape (v, v)
        Independent draws to the local part.
    alone : array of shape (v,)
        Deviation of the part of each voxel alone.
    """

    lasting: NDArray[np.float32]
    tuned: NDArray[np.float32]
    nearby: sparse.csr_array
    alone: NDArray[np.float32]

    @property
    def shared(self) -> NDArray[np.float32]:
        """Directions shared between voxels while pictures are shown: (1 + 2 RANK, v)."""
        return np.vstack([self.lasting, self.tuned])

    def variance(self, *, tuned: bool = True) -> NDArray[np.float64]:
        """Return the variance of each voxel, without its tuned part on request."""
        shared = self.shared if tuned else self.lasting
        local = np.asarray(self.nearby.multiply(self.nearby).sum(axis=0)).ravel()
        return np.asarray((shared.astype(np.float64) ** 2).sum(axis=0) + local + self.alone.astype(np.float64) ** 2)

    def draw(self, rng: np.random.Generator, tuned: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Draw the noise of trials.

        Parameters
        ----------
        rng : Generator
        tuned : array of shape (n,), bool
            Whether a picture is shown; the noise along tuned directions comes only then.

        Returns
        -------
        array of shape (n, v), float32
        """
        n, v = len(tuned), len(self.alone)
        noise = rng.standard_normal((n, len(self.lasting)), dtype=np.float32) @ self.lasting
        noise += (rng.standard_normal((n, len(self.tuned)), dtype=np.float32) * tuned[:, None]) @ self.tuned
        noise += (self.nearby.T @ rng.standard_normal((v, n), dtype=np.float32)).T
        noise += self.alone * rng.standard_normal((n, v), dtype=np.float32)
        return noise

    def scaled(self, by: NDArray[np.float64]) -> TrialNoise:
        """Return the noise with each voxel's part multiplied; `by` of shape (v,)."""
        factor = by.astype(np.float32)
        return replace(
            self,
            lasting=self.lasting * factor,
            tuned=self.tuned * factor,
            nearby=sparse.csr_array(self.nearby * factor),
            alone=self.alone * factor,
        )


def make_trial_noise(
    places_mm: NDArray[np.float64],
    global_field: NDArray[np.float64],
    smooth_fields: NDArray[np.float64],
    tuned: NDArray[np.float64],
) -> TrialNoise:
    """Return noise of variance 1: of each voxel at rest with `TUNED_SHARE` added where it is tuned, of all on average.

    Parameters
    ----------
    places_mm : array of shape (v, 3)
    global_field : array of shape (v,)
        Smooth; only its shape over the voxels counts.
    smooth_fields : array of shape (RANK, v)
    tuned : array of shape (RANK, v)
        Leading directions of the tuning. The noise lies along exactly these, so a voxel's part grows with its tuning:
        brought to the same variance in every voxel, it would leave them, and decoders would learn it away. Voxels that
        have none (all zero) get noise of their own instead.
    """
    whole = GLOBAL_MEAN + GLOBAL_SD * (global_field - global_field.mean()) / global_field.std()
    whole = np.clip(whole, -_MOST_GLOBAL, _MOST_GLOBAL)
    smooth = np.sqrt(SMOOTH_SHARE) * smooth_fields / np.linalg.norm(smooth_fields, axis=0)
    squares = np.square(tuned).sum(axis=0)
    along = np.sqrt(TUNED_SHARE / squares[squares > 0].mean()) * tuned if squares.any() else tuned
    rest = 1 - whole**2 - SMOOTH_SHARE - TUNED_SHARE * (squares > 0)
    return TrialNoise(
        lasting=np.vstack([whole[None], smooth]).astype(np.float32),
        tuned=along.astype(np.float32),
        nearby=_nearby(places_mm, np.sqrt(LOCAL_SHARE * rest)),
        alone=np.sqrt((1 - LOCAL_SHARE) * rest).astype(np.float32),
    )


def _nearby(places_mm: NDArray[np.float64], deviation: NDArray[np.float64]) -> sparse.csr_array:
    """Weights that give unit draws the covariance ``exp(-d^2 / (2 l^2))``, nearly, and each voxel its deviation."""
    spread = _LOCAL_MM / np.sqrt(2)
    tree = cKDTree(places_mm)
    apart = tree.sparse_distance_matrix(tree, _CUT * spread, output_type="coo_matrix")
    weights = sparse.csr_array(
        (np.exp(-(apart.data**2) / (2 * spread**2)), (apart.row, apart.col)), shape=(len(places_mm), len(places_mm))
    )
    total = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=0)).ravel())
    return sparse.csr_array(weights * (deviation / total)).astype(np.float32)
