"""Images: the space of all betas, and maps of its masked voxels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode.derivatives.names import BRAIN_MASK, REFERENCE, Guard, file_path, whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Voxels:
    """The space of a session.

    Attributes
    ----------
    reference : array of shape (i, j, k), float32
        Volume that all others are registered to.
    affine : array of shape (4, 4), float64
        Its voxel indices to RAS mm.
    mask : array of shape (i, j, k), bool
        Its voxels in C order are those of the betas.
    centre_mm : array of shape (3,), float64, or None
        Point that the rotations turn about, RAS mm; None without registration.
    """

    reference: NDArray[np.float32]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    centre_mm: NDArray[np.float64] | None


def write_reference(stem: Path, space: Voxels, guard: Guard = nullcontext) -> None:
    """Write the reference volume and the mask whose C order is the order of all betas.

    Parameters
    ----------
    stem : Path
        Of the session.
    space : Voxels
    guard : callable
        Returns a context manager in which the file that it is given is written.
    """
    with guard(file_path(stem, REFERENCE)) as path:
        write_image(path, np.asarray(space.reference, np.float32), space.affine)
    with guard(file_path(stem, BRAIN_MASK)) as path:
        write_image(path, space.mask.astype(np.uint8), space.affine)


def write_maps(path: Path, maps: Sequence[NDArray[np.float32]], space: Voxels) -> None:
    """Write masked values as one 4-D image, float32.

    Parameters
    ----------
    path : Path
    maps : sequence of array of shape (v,), float32
        One a volume of the image; an empty one is nan within the mask.
    space : Voxels
    """
    data = np.zeros((*space.mask.shape, len(maps)), np.float32)
    for place, values in enumerate(maps):
        data[space.mask, place] = values if len(values) else np.nan
    write_image(path, data, space.affine)


def write_image(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a NIfTI image in mm.

    Parameters
    ----------
    path : Path
    data : array of shape (i, j, k) or (i, j, k, n)
    affine : array of shape (4, 4), float64
        Voxel indices to RAS mm.
    """
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    with whole(path) as draft:
        image.to_filename(draft)
