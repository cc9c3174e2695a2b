"""Where voxels are in a space that participants have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from rtdecode.errors import CalibrationError
from rtdecode.estimate.mask import brain_mask

SPACE = "brain box 1"
"""RAS mm from the middle of the brain, each axis scaled to a brain of usual size; the head lies as it lay."""
HALF_MM = np.array([64.0, 82.0, 60.0])
_ENDS = (1.0, 99.0)
"""Percentiles of the brain's voxels along each axis that stand for its ends: single voxels beyond do not count."""


def common_places(reference: Path, mask: Path) -> NDArray[np.float64]:
    """Return the places (v, 3), mm, of the voxels of a mask.

    A brain is laid into a box by its own middle and size. That needs all of the brain in view; a slab is laid in
    wrongly, and then the prior says little, which held-out trials notice.

    Parameters
    ----------
    reference : Path
        NIfTI file of a volume of the head.
    mask : Path
        NIfTI file in the same space; its C order is the order of betas.

    Raises
    ------
    CalibrationError
        A file cannot be read, or no brain stands out.
    """
    try:
        head: Any = nib.load(reference)
        chosen: Any = nib.load(mask)
        brain = brain_mask(np.asarray(head.dataobj, np.float32))
        voxels = np.argwhere(np.asarray(chosen.dataobj) > 0)
    except (OSError, ImageFileError, ValueError) as error:
        raise CalibrationError(f"{reference}: expected a volume of a whole head: {error}") from None
    low, high = np.percentile(_to_mm(np.argwhere(brain), head.affine), _ENDS, axis=0)
    return np.asarray((_to_mm(voxels, chosen.affine) - (low + high) / 2) * HALF_MM / ((high - low) / 2))


def _to_mm(indices: NDArray[np.int64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])
