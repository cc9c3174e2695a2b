"""Where the places of a brain lie among those of others, by what its voxels answer to.

Brains that are laid upon each other by their outlines still differ by several millimetres in where they answer to what.
A smooth displacement is found that makes the responses likely under the others' mean maps, by Gauss-Newton steps; how
far brains usually lie apart is its prior. Aligning by function rather than by form is as in Sabuncu et al. (Cerebral
Cortex 20, 2010) and Conroy et al. (NeuroImage 81, 2013).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SHIFT_MM: Final = 4.0
WARP_MM: Final = 3.0
SMOOTH_MM: Final = 20.0
"""Standard deviations per axis of the displacement of the whole brain and of its parts, and over how far parts go
together."""
STEPS: Final = 4
_KNOTS_MM: Final = 16.0
_MOST_MODES: Final = 64
_LEADING: Final = 12
"""Directions of the mean maps that are looked at; the others vary little over places."""
_INDEPENDENT: Final = 0.3
"""Of the voxels: neighbours share their noise."""
_MOST_VOXELS: Final = 1000
_LONGEST_MM: Final = 4.0
"""Of a step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanMaps:
    """Mean maps by place, in the directions in which they differ most, with their slopes.

    Attributes
    ----------
    origin_mm : ndarray of shape (3,)
        Centre of the first cell.
    cell_mm : float
    axes : ndarray of shape (k, r)
        From the directions to weights, the first that of the constant.
    values : ndarray of shape (x, y, z, 4, r), float32
        Of each direction, and its slopes along x, y and z a mm.
    """

    origin_mm: Float64
    cell_mm: float
    axes: Float64
    values: Float32

    def at(self, places_mm: Float64) -> Float64:
        """Read at places (v, 3), of which those outside count as the nearest cell: (4, r, v)."""
        *shape, kinds, size = self.values.shape
        where = np.clip((places_mm - self.origin_mm) / self.cell_mm, 0, np.array(shape) - 1)
        return read_cells(self.values.reshape(*shape, kinds * size), where).reshape(kinds, size, -1)


def read_cells(maps: NDArray[np.floating], where: Float64) -> Float64:
    """Interpolate maps (x, y, z, m) linearly at places (v, 3), in cells: (m, v), zero outside.

    What `scipy.ndimage.map_coordinates` gives map by map, with the places looked up once for all.
    """
    *shape, size = maps.shape
    last = np.array(shape) - 1
    low = np.clip(np.floor(where), 0, last - 1).astype(np.intp)
    part = where - low
    inside = ((where >= 0) & (where <= last)).all(axis=1)
    rows = maps.reshape(-1, size)
    found = np.zeros((len(where), size))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, part, 1 - part).prod(axis=1) * inside
        found += weight[:, None] * rows[np.ravel_multi_index(tuple((low + corner).T), shape)]
    return found.T


def mean_maps(mean: Float32, origin_mm: Float64, cell_mm: float) -> MeanMaps:
    """Keep of mean maps (k, x, y, z), the constant first, what differs most between places."""
    flat = mean[1:].reshape(len(mean) - 1, -1).astype(np.float64)
    _, directions = np.linalg.eigh(flat @ flat.T)
    axes = np.zeros((len(mean), 1 + min(_LEADING, len(flat))))
    axes[0, 0] = 1.0
    axes[1:, 1:] = directions[:, ::-1][:, : axes.shape[1] - 1]
    maps = np.einsum("kr,kxyz->xyzr", axes, mean)
    values = np.stack([maps, *np.gradient(maps, cell_mm, axis=(0, 1, 2))], axis=3)
    return MeanMaps(origin_mm=origin_mm, cell_mm=cell_mm, axes=axes, values=values.astype(np.float32))


class Displacement:
    """A smooth displacement of the places of a brain: a shift, and bends as a Gaussian process draws them.

    The process is known at knots; of these only the combinations that vary most are kept.
    """

    def __init__(self, places_mm: Float64) -> None:
        self._places = places_mm
        low, high = places_mm.min(0) - _KNOTS_MM / 2, places_mm.max(0) + _KNOTS_MM / 2
        axes = [np.arange(a, b + _KNOTS_MM / 2, _KNOTS_MM) for a, b in zip(low, high, strict=True)]
        knots = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        knots = knots[cdist(knots, places_mm[:: max(1, len(places_mm) // _MOST_VOXELS)]).min(1) < _KNOTS_MM]
        values, modes = np.linalg.eigh(_bumps(knots, knots))
        kept = slice(-min(_MOST_MODES, int((values > 1e-3 * values[-1]).sum())), None)
        bends = _bumps(places_mm, knots) @ (modes[:, kept] / np.sqrt(values[kept]))
        self._field = np.column_stack([np.ones(len(places_mm)), bends])
        self._precision = np.diag(np.r_[SHIFT_MM**-2, np.full(bends.shape[1], WARP_MM**-2)])
        self.amounts = np.zeros((self._field.shape[1], 3))

    def places(self) -> Float64:
        """Places (v, 3) after the displacement, mm."""
        return np.asarray(self._places + self._field @ self.amounts)

    def undone(self) -> Displacement:
        """Return one of the same brain that moves nothing yet."""
        other = copy(self)
        other.amounts = np.zeros_like(self.amounts)
        return other

    def fit(
        self, maps: MeanMaps, gram: Float64, products: Float32, covariance: Float64, noise: float, steps: int = STEPS
    ) -> None:
        """Move the places to where the responses are likeliest.

        Parameters
        ----------
        maps : MeanMaps
            Of others.
        gram : ndarray of shape (k, k)
            Products of the features of all trials, the constant first.
        products : ndarray of shape (k, v)
            Of the features with the responses.
        covariance : ndarray of shape (k, k)
            Of a voxel's weights around the mean of others at its place.
        noise : float
            Variance of the responses beside.
        steps : int
        """
        chosen = slice(None, None, max(1, len(self._places) // _MOST_VOXELS))
        places, field = self._places[chosen], self._field[chosen]
        trust = _INDEPENDENT * len(self._places) / len(places)
        shrunk = trust * maps.axes.T @ np.linalg.inv(noise * np.eye(len(gram)) + gram @ covariance)
        wanted = shrunk @ products[:, chosen].astype(np.float64)
        precision = shrunk @ gram @ maps.axes
        size = field.shape[1]
        for _ in range(steps):
            value, *slopes = maps.at(places + field @ self.amounts)
            left = wanted - precision @ value
            pull = np.stack([(slope * left).sum(0) for slope in slopes], axis=1)
            weighted = [precision @ slope for slope in slopes]
            curvature = np.zeros((3, size, 3, size))
            for a, b in combinations_with_replacement(range(3), 2):
                between = field.T @ ((slopes[a] * weighted[b]).sum(0)[:, None] * field)
                curvature[a, :, b] = curvature[b, :, a] = between
            for a in range(3):
                curvature[a, :, a] += self._precision
            ascent = (field.T @ pull - self._precision @ self.amounts).T.ravel()
            step = np.linalg.solve(curvature.reshape(3 * size, 3 * size), ascent).reshape(3, size).T
            longest = float(np.abs(field @ step).max())
            self.amounts += step * min(1.0, _LONGEST_MM / max(longest, 1e-9))


def _bumps(places_mm: Float64, knots_mm: Float64) -> Float64:
    return np.asarray(np.exp(-cdist(places_mm, knots_mm, "sqeuclidean") / (2 * SMOOTH_MM**2)))
