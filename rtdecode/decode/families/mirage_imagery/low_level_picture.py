"""MIRAGE's low-level picture: the very deep VAE's mixtures to bytes, enlarged, sharpened and with more contrast."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Float32 = NDArray[np.float32]
_LEAST_LOG_SCALE = -7.0
LEAST_UNIFORM = 1e-5
"""The least uniform number that a mixture is drawn with; the largest is 1 less it."""


def sample_mixture(logits: Float32, choice: Float32, colour: Float32) -> Float32:
    """Draw each pixel from its mixture of discretised logistics (Salimans et al. 2017).

    Parameters
    ----------
    logits : ndarray of shape (b, h, w, 10 * mixtures)
        Weights, and for each colour means, log scales and coefficients of the colours before.
    choice : ndarray of shape (b, h, w, mixtures)
        Uniform in `LEAST_UNIFORM` to 1 - `LEAST_UNIFORM`: which logistic.
    colour : ndarray of shape (b, h, w, 3)
        The same: where in it.

    Returns
    -------
    ndarray of shape (b, h, w, 3), float32
        Red, green and blue in -1..1.
    """
    mixtures = logits.shape[-1] // 10
    weights = logits[..., :mixtures]
    chosen = np.argmax(weights - np.log(-np.log(choice)), axis=-1)
    rest = logits[..., mixtures:].reshape(*logits.shape[:3], 3, 3 * mixtures)

    def of(part: int) -> Float32:
        values = rest[..., part * mixtures : (part + 1) * mixtures]
        return np.asarray(np.take_along_axis(values, chosen[..., None, None], axis=-1)[..., 0])

    means, scales, couplings = of(0), np.maximum(of(1), _LEAST_LOG_SCALE), np.tanh(of(2))
    x = means + np.exp(scales) * (np.log(colour) - np.log(1 - colour))
    red = np.clip(x[..., 0], -1, 1)
    green = np.clip(x[..., 1] + couplings[..., 0] * red, -1, 1)
    blue = np.clip(x[..., 2] + couplings[..., 1] * red + couplings[..., 2] * green, -1, 1)
    return np.stack([red, green, blue], -1).astype(np.float32)


def as_bytes(colours: Float32) -> NDArray[np.uint8]:
    """Turn colours in -1..1 to bytes: cut off, not rounded, as published."""
    return np.asarray(np.clip((colours + np.float32(1)) * np.float32(127.5), 0, 255).astype(np.uint8))


def enhanced(picture: NDArray[np.uint8], *, px: int, sharpness: float, contrast: float) -> NDArray[np.uint8]:
    """Enlarge a picture (h, w, 3), then sharpen it, then raise its contrast."""
    large = Image.fromarray(picture).resize((px, px), Image.Resampling.LANCZOS)
    sharp = ImageEnhance.Sharpness(large).enhance(sharpness)
    return np.asarray(ImageEnhance.Contrast(sharp).enhance(contrast))


def scaled(picture: NDArray[np.uint8]) -> NDArray[Any]:
    """Bytes (h, w, 3) as a picture (1, 3, h, w) in 0..1, float32."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)[None] / np.float32(255)
