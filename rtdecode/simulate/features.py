"""What a simulated brain sees in a picture: pixels alone, in three stages. Nothing here knows a picture's category.

Early: oriented energy and colour on a grid. Middle: a fixed random two-layer convolution. Front: how alike the masked
and cropped object is to exemplars, with its size, place and colour. None of it is the decoder's embedder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from rtdecode.simulate import world
from rtdecode.simulate.seeds import generator

GRID: Final = 4
N_CHANNELS: Final = 15
"""Of the early stage at each cell of its `GRID` x `GRID`: 12 oriented energies, 3 colours."""
N_COMPONENTS: Final = 24
"""Of the convolution, and of object form."""
N_OBJECT: Final = 6
"""Size, two of place, three of colour."""
EARLY: Final = slice(0, N_CHANNELS * GRID**2)
MIDDLE: Final = slice(EARLY.stop, EARLY.stop + N_COMPONENTS)
FRONT: Final = slice(MIDDLE.stop, MIDDLE.stop + N_COMPONENTS + N_OBJECT)
N_FEATURES: Final = FRONT.stop

_SEED: Final = 20011
_REFERENCE: Final = 480
_EXEMPLARS: Final = 48
_CROP_PX: Final = 16
_SILHOUETTE: Final = 0.7
_SIMILAR_WITHIN: Final = 0.55
_OBJECT_SHARE: Final = 0.4
_SPECTRUM_EXPONENT: Final = 1.0
_WAVELENGTHS_PX: Final = (4.0, 8.0, 16.0)
_N_ORIENTATIONS: Final = 4
_FILTERS: Final = ((16, 7), (32, 5))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Space:
    """How raw values become features, and what these are like over a fixed set of pictures.

    Attributes
    ----------
    exemplars : array of shape (48, n)
        Masked and cropped objects.
    within : float
        Distance at which form is half-way alike.
    stages : tuple of (mean, axes)
        Of each stage: raw values minus the mean, times the axes, are features.
    covariance : array of shape (N_FEATURES, N_FEATURES)
        Of the features over the reference pictures.
    """

    exemplars: NDArray[np.float64]
    within: float
    stages: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]
    covariance: NDArray[np.float64]


def picture_features(scenes: list[world.Scene]) -> NDArray[np.float64]:
    """Return what is seen in pictures: the same for every person and population, so compute it once for a pool.

    Returns
    -------
    array of shape (n_scenes, N_FEATURES)
        Mean zero over pictures in general; `EARLY`, `MIDDLE` and `FRONT` are the columns of the three stages.
    """
    return _features(_raw(scenes, _space().exemplars, _space().within), _space().stages)


def feature_covariance() -> NDArray[np.float64]:
    """Return the covariance of the features over pictures in general, shape (N_FEATURES, N_FEATURES)."""
    return _space().covariance


@cache
def _space() -> _Space:
    rng = generator(_SEED, "reference pictures")
    scenes = [world.sample_scene(rng) for _ in range(_EXEMPLARS + _REFERENCE)]
    exemplars = np.stack([_object(*world.render(scene))[0] for scene in scenes[:_EXEMPLARS]])
    apart = np.sqrt(_squared_distances(exemplars, exemplars))
    within = _SIMILAR_WITHIN * float(np.median(apart[np.triu_indices(_EXEMPLARS, 1)]))
    raw = _raw(scenes[_EXEMPLARS:], exemplars, within)
    early, middle, form, traits = raw
    stages = (_scaled(early, 1.0), _components(middle), _components(form), _scaled(traits, _OBJECT_SHARE / N_OBJECT))
    features = _features(raw, stages)
    return _Space(exemplars=exemplars, within=within, stages=stages, covariance=np.cov(features.T))


def _features(
    raw: tuple[NDArray[np.float64], ...], stages: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]
) -> NDArray[np.float64]:
    return np.hstack([(part - mean) @ axes for part, (mean, axes) in zip(raw, stages, strict=True)])


def _scaled(raw: NDArray[np.float64], variance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    deviation = raw.std(axis=0)
    return raw.mean(axis=0), np.diag(np.sqrt(variance) / np.where(deviation > 0, deviation, np.inf))


def _components(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components whose variances fall slowly and sum to one."""
    mean = raw.mean(axis=0)
    _, strengths, axes = np.linalg.svd(raw - mean, full_matrices=False)
    variance = np.arange(1, N_COMPONENTS + 1, dtype=np.float64) ** -_SPECTRUM_EXPONENT
    whitening = np.sqrt(len(raw)) / strengths[:N_COMPONENTS]
    return mean, axes[:N_COMPONENTS].T * (whitening * np.sqrt(variance / variance.sum()))


def _raw(scenes: list[world.Scene], exemplars: NDArray[np.float64], within: float) -> tuple[NDArray[np.float64], ...]:
    rendered = [world.render(scene) for scene in scenes]
    pictures = np.stack([picture for picture, _ in rendered]).astype(np.float64) / 255
    objects = [_object(picture, mask) for picture, mask in rendered]
    crops, traits = (np.stack(values) for values in zip(*objects, strict=True))
    alike = np.exp(-_squared_distances(crops, exemplars) / (2 * within**2))
    return np.hstack([_energy(pictures), _colour(pictures)]), _convolved(pictures), alike, traits


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.maximum(squared, 0.0))


def _object(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Form of the masked object, cropped to its bounds, freed from brightness; and its size, place and colour."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    grey = picture.mean(axis=2)
    inside = grey[mask]
    shade = np.where(mask, (grey - inside.mean()) / (inside.std() + 1.0), 0.0)[box]
    small = [
        np.asarray(Image.fromarray(part.astype(np.float32)).resize((_CROP_PX, _CROP_PX), Image.Resampling.BOX))
        for part in (shade, mask[box].astype(np.float32))
    ]
    form = np.concatenate([small[0].ravel(), _SILHOUETTE * small[1].ravel()]).astype(np.float64)
    at = np.argwhere(mask).mean(axis=0)
    return form, np.array([np.sqrt(mask.mean()), *at, *picture[mask].mean(axis=0)])


def _convolved(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two layers of fixed random filters, each rectified; pictures of shape (n, height, width, 3)."""
    rng = generator(_SEED, "convolution")
    n, height, width, _ = pictures.shape
    maps = (pictures.reshape(n, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4)) - 0.5).astype(np.float32)
    for n_filters, side in _FILTERS:
        filters = rng.standard_normal((maps.shape[3], side, side, n_filters), dtype=np.float32) / side
        windows = sliding_window_view(maps, (side, side), axis=(1, 2))[:, ::2, ::2]
        maps = np.maximum(np.tensordot(windows, filters, axes=3), 0)
    halves = (slice(None, 3), slice(2, None))
    pooled = [maps[:, rows, columns].mean(axis=(1, 2)) for rows in halves for columns in halves]
    return np.hstack(pooled).astype(np.float64)


def _energy(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log energy of Gabor filters, pooled over a grid of patches; pictures of shape (n, height, width, 3)."""
    grey = pictures.mean(axis=3)
    spectrum = fft.fft2((grey - grey.mean(axis=(1, 2), keepdims=True)).astype(np.float32))
    v = np.fft.fftfreq(grey.shape[1])[:, None]
    u = np.fft.fftfreq(grey.shape[2])[None, :]
    energies = []
    for wavelength in _WAVELENGTHS_PX:
        for angle in np.arange(_N_ORIENTATIONS) * np.pi / _N_ORIENTATIONS:
            distance = (u - np.cos(angle) / wavelength) ** 2 + (v - np.sin(angle) / wavelength) ** 2
            response = fft.ifft2(spectrum * np.exp(-distance * (2 * wavelength) ** 2).astype(np.float32))
            energies.append(np.log(1e-3 + _pool(np.abs(response))))
    return np.hstack(energies)


def _colour(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    red, green, blue = np.moveaxis(pictures, 3, 0)
    channels = ((red + green + blue) / 3, red - green, blue - (red + green) / 2)
    return np.hstack([_pool(channel) for channel in channels])


def _pool(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    n, height, width = maps.shape
    patches = maps.reshape(n, GRID, height // GRID, GRID, width // GRID)
    pooled: NDArray[np.float64] = patches.mean(axis=(2, 4)).reshape(n, -1)
    return pooled
