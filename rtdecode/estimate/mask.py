"""Which voxels are brain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtdecode.estimate.interpolation import smooth

_MASKED_ZEROS = 0.2
_MASKED_FLOOR = 0.02
_OF_MEDIAN = 0.6


def brain_mask(volume: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.bool_]:
    """Find the brain in one echo-planar volume.

    Otsu's threshold finds the head; what exceeds 60 % of its median (the scalp is darker), opened, largest
    component, holes filled. Where a fifth of the voxels are exactly zero, somebody has removed the background
    already: everything above 2 % of the bright voxels.

    Parameters
    ----------
    volume : array of shape (i, j, k)

    Returns
    -------
    array of shape (i, j, k), bool

    Raises
    ------
    ValueError
        If nothing stands out from the background.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9(1), 1979.
    """
    data = np.asarray(volume, np.float32)
    if (data == 0).mean() > _MASKED_ZEROS and (data != 0).any():
        return np.asarray(data > _MASKED_FLOOR * np.percentile(data[data != 0], 98))
    blurred = smooth(data, (0.7, 0.7, 0.7))
    # A slab ends inside the head: what lies beyond the field of view counts as head.
    head = ndimage.binary_erosion(blurred > _otsu(blurred), iterations=2, border_value=1)
    if not head.any():
        raise ValueError("brain mask: expected a bright head on a dark background, got none; give estimate.mask a file")
    bright = blurred > _OF_MEDIAN * np.median(blurred[head])
    # Two steps detach what is left of the scalp; the brain's own rim comes back within the threshold.
    core = ndimage.binary_erosion(bright, iterations=2, border_value=1)
    labels, count = ndimage.label(core)
    if count == 0:
        raise ValueError("brain mask: expected a bright head on a dark background, got none; give estimate.mask a file")
    core = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    brain = ndimage.binary_dilation(core, iterations=2) & bright
    for k in range(brain.shape[2]):
        brain[:, :, k] = ndimage.binary_fill_holes(brain[:, :, k])
    return np.asarray(brain, np.bool_)


def _otsu(values: NDArray[np.float32]) -> float:
    top = float(np.percentile(values, 99.5))
    counts, edges = np.histogram(np.clip(values, 0, top), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    mass = np.cumsum(counts * centres)
    low = mass[:-1] / np.maximum(below, 1)
    high = (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    return float(edges[1 + np.argmax(below * above * (high - low) ** 2)])
