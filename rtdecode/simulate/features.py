"""What the simulated brain sees in a picture: its own feature space, not the decoder's embedder.

Oriented energy and colour of the picture itself, and a fixed random expansion of what the scene means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.simulate import world
from rtdecode.simulate.seeds import generator

N_FEATURES = 128
_SPECTRUM_EXPONENT = 1.0
_POPULATION = 320
_POPULATION_SEED = 20011
_SEMANTIC_SHARE = 0.6
_N_EXPANSION = 96
_WAVELENGTHS_PX = (4.0, 8.0, 16.0)
_N_ORIENTATIONS = 4
_POOLS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureSpace:
    """Turns scenes into features of decreasing variance.

    Attributes
    ----------
    mean, scale : array of shape (n_raw,)
        Standardise the raw features.
    axes : array of shape (n_raw, N_FEATURES)
        Principal axes, scaled so that feature k has variance proportional to 1/k and all have variance 1
        together.
    variance : array of shape (N_FEATURES,)
        Variance of each feature over pictures.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    axes: NDArray[np.float64]
    variance: NDArray[np.float64]

    def __call__(self, scenes: list[world.Scene]) -> NDArray[np.float64]:
        """Return features of shape (n_scenes, N_FEATURES)."""
        features: NDArray[np.float64] = (_raw(scenes) - self.mean) * self.scale @ self.axes
        return features


def make_feature_space() -> FeatureSpace:
    """Fit the feature space to a fixed population of pictures: the same for every participant and visit."""
    rng = generator(_POPULATION_SEED, "population")
    raw = _raw([world.sample_scene(rng) for _ in range(_POPULATION)])
    mean = raw.mean(axis=0)
    deviation = raw.std(axis=0)
    share = np.where(np.arange(raw.shape[1]) < _N_EXPANSION, _SEMANTIC_SHARE / _N_EXPANSION, 0.0)
    share[_N_EXPANSION:] = (1 - _SEMANTIC_SHARE) / (raw.shape[1] - _N_EXPANSION)
    scale = np.sqrt(share) / np.where(deviation > 0, deviation, np.inf)
    _, strengths, axes = np.linalg.svd((raw - mean) * scale, full_matrices=False)
    falling = np.arange(1, N_FEATURES + 1, dtype=np.float64) ** -_SPECTRUM_EXPONENT
    variance: NDArray[np.float64] = falling / falling.sum()
    whitening = np.sqrt(_POPULATION) / strengths[:N_FEATURES]
    return FeatureSpace(
        mean=mean, scale=scale, axes=axes[:N_FEATURES].T * (whitening * np.sqrt(variance)), variance=variance
    )


def _raw(scenes: list[world.Scene]) -> NDArray[np.float64]:
    attributes = np.stack([world.semantic_attributes(scene) for scene in scenes]).astype(np.float64)
    rng = generator(_POPULATION_SEED, "expansion")
    directions = rng.standard_normal((attributes.shape[1], _N_EXPANSION))
    expansion = np.tanh(attributes @ directions / 2 + rng.uniform(-0.5, 0.5, _N_EXPANSION))
    pictures = np.stack([world.render(scene)[0] for scene in scenes]).astype(np.float64) / 255
    return np.hstack([expansion, _energy(pictures), _colour(pictures)])


def _energy(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log energy of Gabor filters, pooled over a grid of patches; pictures of shape (n, height, width, 3)."""
    grey = pictures.mean(axis=3)
    spectrum = np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))
    v = np.fft.fftfreq(grey.shape[1])[:, None]
    u = np.fft.fftfreq(grey.shape[2])[None, :]
    energies = []
    for wavelength in _WAVELENGTHS_PX:
        for angle in np.arange(_N_ORIENTATIONS) * np.pi / _N_ORIENTATIONS:
            distance = (u - np.cos(angle) / wavelength) ** 2 + (v - np.sin(angle) / wavelength) ** 2
            response = np.fft.ifft2(spectrum * np.exp(-distance * (2 * wavelength) ** 2))
            energies.append(np.log(1e-3 + _pool(np.abs(response))))
    return np.hstack(energies)


def _colour(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    red, green, blue = np.moveaxis(pictures, 3, 0)
    channels = ((red + green + blue) / 3, red - green, blue - (red + green) / 2)
    return np.hstack([_pool(channel) for channel in channels])


def _pool(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    n, height, width = maps.shape
    patches = maps.reshape(n, _POOLS, height // _POOLS, _POOLS, width // _POOLS)
    pooled: NDArray[np.float64] = patches.mean(axis=(2, 4)).reshape(n, -1)
    return pooled
