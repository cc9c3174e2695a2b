"""From the positions and directions that scanners write (patient axes, toward left, posterior, superior) to RAS+."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import VolumeError

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_PLACE_MM = 0.01
_UNEVEN = 0.05


def normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Direction across the slices: rows x columns."""
    return np.cross(orientation[:3], orientation[3:])


def affine(
    path: Path,
    orientation: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
    step: NDArray[np.float64],
    corner: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Build the affine of voxels (column, row, slice).

    Parameters
    ----------
    path : Path
        Named in errors.
    orientation : array of shape (6,)
        Directions along a row and along a column.
    spacing_mm : array of shape (2,)
        Between rows, between columns.
    step : array of shape (3,)
        From one slice to the next, mm.
    corner : array of shape (3,)
        Centre of the first voxel, mm.

    Raises
    ------
    VolumeError
        If the axes are not independent.
    """
    lps = np.eye(4)
    lps[:3, 0] = orientation[:3] * spacing_mm[1]
    lps[:3, 1] = orientation[3:] * spacing_mm[0]
    lps[:3, 2] = step
    lps[:3, 3] = corner
    ras: NDArray[np.float64] = _RAS @ lps
    return independent(path, ras)


def independent(path: Path, ras: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an affine whose axes are finite and independent.

    Raises
    ------
    VolumeError
        If they are not.
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(ras[:3, :3], axis=0)
        size, volume = np.prod(lengths), abs(np.linalg.det(ras[:3, :3]))
    if not np.isfinite([*ras.ravel(), size, volume]).all() or not size > 0 or volume <= 1e-3 * size:
        raise VolumeError(path, "geometry", "three independent axes", ras[:3, :3].tolist())
    return ras


def places(
    path: Path, positions: NDArray[np.float64], orientation: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Sort slices by where they lie.

    Parameters
    ----------
    path : Path
    positions : array of shape (n, 3)
    orientation : array of shape (6,)

    Returns
    -------
    rank : array of shape (n,)
        Which slice each lies in, counted along the normal.
    centres : array of shape (n_slices, 3)
        A position of each slice.

    Raises
    ------
    VolumeError
        If the slices are not evenly spaced.
    """
    along = positions @ normal(orientation)
    order = np.argsort(along, kind="stable")
    new = np.diff(along[order], prepend=along[order[0]]) > _SAME_PLACE_MM
    rank = np.empty(len(along), dtype=np.intp)
    rank[order] = np.cumsum(new)
    _, first = np.unique(rank, return_index=True)
    centres = positions[first]
    if len(centres) > 2:
        gaps = np.diff(along[first])
        if gaps.max() - gaps.min() > _UNEVEN * np.median(gaps):
            got = f"gaps of {gaps.min():.3f} to {gaps.max():.3f} mm"
            raise VolumeError(path, "slice positions", "evenly spaced slices, none missing", got)
    return rank, centres


def step(
    path: Path, centres: NDArray[np.float64], orientation: NDArray[np.float64], between_mm: float | None
) -> NDArray[np.float64]:
    """Return the way from one slice to the next, mm.

    Raises
    ------
    VolumeError
        If there is one slice and no stated distance.
    """
    if len(centres) > 1:
        way: NDArray[np.float64] = (centres[-1] - centres[0]) / (len(centres) - 1)
        return way
    if not between_mm:
        raise VolumeError(path, "SpacingBetweenSlices", "a distance in mm, or SliceThickness", between_mm)
    return normal(orientation) * between_mm


def slice_centres(ras: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Middle of each slice (third axis), RAS mm: array of shape (k, 3)."""
    voxels = np.array([[(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1.0] for k in range(shape[2])])
    centres: NDArray[np.float64] = (voxels @ ras.T)[:, :3]
    return centres
