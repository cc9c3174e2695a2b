"""Masks and label images on the grid of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from rtdecode.errors import SettingsError
from rtdecode.estimate.compiled import compiled

FEWEST_VOXELS = 3
_AFFINE_MM = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parcels:
    """The parcels of one label image, as far as they lie in the mask.

    Attributes
    ----------
    names : tuple of p str
        Their labels, in ascending order.
    dropped : tuple of str
        Labels of those that are left out: fewer than three of their voxels lie in the mask.
    places : array of shape (v,), int64
        Of each voxel of the mask its parcel in `names`; ``p`` where it is in none.
    sizes : array of shape (p,), int64
        Voxels of each parcel that lie in the mask.
    """

    names: tuple[str, ...]
    dropped: tuple[str, ...]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def means(self, masked: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean over each parcel, shape (p,), of a volume's values, shape (v,)."""
        return np.asarray(sums_by_place(self.places, masked, len(self.names) + 1)[:-1] / self.sizes)


def read_mask(name: str, path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Read a mask.

    Parameters
    ----------
    name : str
        Of the setting in ``[estimate]`` that names it.
    path : Path
    shape, affine
        Of the reference.

    Raises
    ------
    SettingsError
        It cannot be read, lies on another grid, or is empty.
    """
    mask: NDArray[np.bool_] = _read(name, path, "mask", shape, affine) > 0
    if not mask.any():
        raise SettingsError([f"$.estimate.{name}: expected some voxels, got none: {path}"])
    return mask


def read_parcels(
    name: str, path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], mask: NDArray[np.bool_]
) -> Parcels:
    """Read a label image: whole numbers, 0 where there is no parcel.

    Parameters
    ----------
    name, path, shape, affine
        As of `read_mask`.
    mask : array of shape (i, j, k), bool
        Voxels that have values.

    Raises
    ------
    SettingsError
        It cannot be read, lies on another grid, holds other numbers, or no parcel is left.
    """
    labels = _read(name, path, "label image", shape, affine)
    strange = labels[(labels != np.rint(labels)) | (labels < 0)]
    if len(strange):
        raise SettingsError([f"$.estimate.{name}: expected labels 0, 1, 2 and on, got {strange[0]:g}: {path}"])
    inside = labels[mask].astype(np.int64)
    every = np.unique(labels[labels > 0]).astype(np.int64)
    counts = np.array([np.count_nonzero(inside == label) for label in every])
    kept = every[counts >= FEWEST_VOXELS]
    if not len(kept):
        raise SettingsError(
            [f"$.estimate.{name}: expected parcels of {FEWEST_VOXELS} voxels or more inside the mask, got none: {path}"]
        )
    found = np.minimum(np.searchsorted(kept, inside), len(kept) - 1)
    return Parcels(
        names=tuple(str(label) for label in kept),
        dropped=tuple(str(label) for label in every[counts < FEWEST_VOXELS]),
        places=np.where(kept[found] == inside, found, len(kept)),
        sizes=counts[counts >= FEWEST_VOXELS],
    )


@compiled
def sums_by_place(places: NDArray[np.int64], values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Sum values by place, as `numpy.bincount` does, without a copy of either in float64."""
    found = np.zeros(count)
    for voxel in range(len(places)):
        found[places[voxel]] += values[voxel]
    return found


def _read(name: str, path: Path, what: str, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
    setting = f"$.estimate.{name}"
    try:
        image: Any = nibabel.load(path)
    except (OSError, ImageFileError) as error:
        raise SettingsError([f"{setting}: expected a NIfTI {what}: {error}"]) from None
    if image.shape != shape:
        raise SettingsError([f"{setting}: expected the shape of the reference {shape}, got {image.shape}: {path}"])
    if not np.allclose(image.affine, affine, atol=_AFFINE_MM):
        wanted, got = (np.round(matrix, 3).tolist() for matrix in (affine, image.affine))
        raise SettingsError([f"{setting}: expected the affine of the reference {wanted}, got {got}: {path}"])
    return np.asarray(image.dataobj)
