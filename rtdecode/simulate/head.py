"""A procedural head: grey and white matter, fluid, scalp, signal dropout and coil bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtdecode.simulate.seeds import generator

SPACING_MM = 2.0
BRAIN_AXES_MM = (66.0, 84.0, 57.0)
_HALF_EXTENT_MM = (90.0, 112.0, 80.0)
_BRIGHTNESS = 900.0
_SIGNAL = {"white": 0.8, "grey": 1.0, "fluid": 1.3, "skull": 0.06, "scalp": 0.45}
_FOLD_FWHM_MM = 7.0
_SHAPE_FWHM_MM = 40.0
_BLUR_FWHM_MM = 3.4
_VENTRICLES_MM = ((-13.0, -4.0, 8.0), (13.0, -4.0, 8.0))
_VENTRICLE_AXES_MM = (6.0, 26.0, 11.0)
_DROPOUT_MM = ((0.0, 44.0, -36.0), (-48.0, -12.0, -36.0), (48.0, -12.0, -36.0))
_DROPOUT_SD_MM = 12.0
_DROPOUT_DEPTH = 0.75
FWHM_TO_SD = 1 / np.sqrt(8 * np.log(2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """Fields of a head at `SPACING_MM`, at rest.

    Attributes
    ----------
    signal : array of shape (x, y, z), float32
        Stored value of an echo-planar image without noise, blurred as its voxels blur it.
    grey : array of shape (x, y, z), float32
        Fraction of grey matter, blurred alike.
    affine : array of shape (4, 4)
        Indices of the fields to RAS+ mm.
    """

    signal: NDArray[np.float32]
    grey: NDArray[np.float32]
    affine: NDArray[np.float64]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], fwhm_mm: float, spacing_mm: float | tuple[float, ...]
) -> NDArray[np.float32]:
    """Return a Gaussian random field of zero mean, unit variance and the given smoothness."""
    field = rng.standard_normal(shape, dtype=np.float32)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(
        field, fwhm_mm * FWHM_TO_SD / np.asarray(spacing_mm), mode="wrap", truncate=3.0
    )
    return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float32)


def make_head(seed: int) -> Head:
    """Grow a head; the same seed gives the same head."""
    rng = generator(seed, "head")
    axes = [np.arange(-half, half + SPACING_MM / 2, SPACING_MM, dtype=np.float32) for half in _HALF_EXTENT_MM]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    shape = tuple(axis.size for axis in axes)
    radius = np.sqrt((x / BRAIN_AXES_MM[0]) ** 2 + (y / BRAIN_AXES_MM[1]) ** 2 + (z / BRAIN_AXES_MM[2]) ** 2)
    radius = radius + 0.04 * smooth_noise(rng, shape, _SHAPE_FWHM_MM, SPACING_MM)
    folds = smooth_noise(rng, shape, _FOLD_FWHM_MM, SPACING_MM)
    white = (radius + 0.10 * folds < 0.78) & (radius < 0.90)
    fluid = ((radius >= 0.96) & (radius < 1.04)) | ((folds > 1.3) & (radius > 0.84) & (radius < 0.96))
    for centre in _VENTRICLES_MM:
        offsets = ((axis - c) / a for axis, c, a in zip((x, y, z), centre, _VENTRICLE_AXES_MM, strict=True))
        fluid |= sum(o**2 for o in offsets) < 1
    grey = (radius < 0.96) & ~white & ~fluid
    signal = np.zeros(shape, dtype=np.float32)
    signal[(radius >= 1.10) & (radius < 1.24)] = _SIGNAL["scalp"]
    signal[(radius >= 1.04) & (radius < 1.10)] = _SIGNAL["skull"]
    signal[white] = _SIGNAL["white"]
    signal[grey] = _SIGNAL["grey"]
    signal[fluid] = _SIGNAL["fluid"]
    signal *= 1 + 0.06 * smooth_noise(rng, shape, _FOLD_FWHM_MM, SPACING_MM)
    for centre in _DROPOUT_MM:
        squared = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True))
        signal *= 1 - _DROPOUT_DEPTH * np.exp(-squared / (2 * _DROPOUT_SD_MM**2))
    signal *= 0.85 + 0.3 * np.clip(radius, 0, 1.2) ** 2 - 0.08 * y / BRAIN_AXES_MM[1]
    blur = _BLUR_FWHM_MM * FWHM_TO_SD / SPACING_MM
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return Head(
        signal=ndimage.gaussian_filter(signal * _BRIGHTNESS, blur, truncate=3.0),
        grey=ndimage.gaussian_filter(grey.astype(np.float32), blur, truncate=3.0),
        affine=affine,
    )
