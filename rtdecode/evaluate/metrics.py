"""Measures of reconstructions as MindEye2's evaluation takes them (Scotti et al. 2024; Ozcelik & VanRullen 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rtdecode.decode.resample import bilinear
from rtdecode.statistics import cosines

Float64 = NDArray[np.float64]
EVALUATION_PX = 425
"""Pictures are compared pixel by pixel at this height and width."""
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
_SIGMA = 1.5
_RADIUS = 5
"""Of the Gaussian window, 3.5 sigma; so wide an edge is left out of the mean."""
_K1, _K2 = 0.01, 0.03


def pixcorr(true: NDArray[Any], made: NDArray[Any], *, px: int = EVALUATION_PX) -> Float64:
    """Pearson correlation over the pixels of each pair of pictures.

    Parameters
    ----------
    true, made : ndarray of shape (n, 3, h, w)
        Pictures in 0..1.
    px : int
        Height and width at which they are compared.

    Returns
    -------
    ndarray of shape (n,), float64
        NaN where a picture is of one colour.
    """
    pairs = zip(bilinear(true, px), bilinear(made, px), strict=True)
    return np.array([_correlation(a.reshape(1, -1), b.reshape(1, -1))[0] for a, b in pairs])


def ssim(true: NDArray[Any], made: NDArray[Any], *, px: int = EVALUATION_PX) -> Float64:
    """Structural similarity of the luminance of each pair of pictures (Wang et al. 2004), with a Gaussian window.

    Parameters and shapes as in `pixcorr`.
    """
    pairs = zip(bilinear(true, px), bilinear(made, px), strict=True)
    return np.array([_ssim(_grey(a), _grey(b)) for a, b in pairs])


def two_way_counts(true: NDArray[Any], made: NDArray[Any]) -> NDArray[np.int64]:
    """For each made picture, with how many other true ones it correlates less than with its own.

    Parameters
    ----------
    true, made : ndarray of shape (n, d)
        Features of the true and of the made pictures.

    Returns
    -------
    ndarray of shape (n,), int64
        From 0 to n - 1.
    """
    n = len(true)
    r = np.corrcoef(true, made)[:n, n:]
    return np.asarray(np.sum(r < np.diag(r), axis=0), dtype=np.int64)


def two_way(true: NDArray[Any], made: NDArray[Any]) -> float:
    """Two-way identification: share of comparisons that a made picture's own true one wins; chance is 1/2."""
    return float(np.mean(two_way_each(true, made)))


def two_way_each(true: NDArray[Any], made: NDArray[Any], *, legacy: bool = False) -> Float64:
    """Two-way identification of each made picture: shape (n,).

    Parameters
    ----------
    true, made : ndarray of shape (n, d)
        As of `two_way_counts`.
    legacy : bool
        As the published notebook of NSD-Imagery counts: it takes one comparison off that it never made, so that each
        picture has 1 / (n - 1) less than it should, and chance with it. Only to compare with numbers made so.
    """
    counts = two_way_counts(true, made) - (1 if legacy else 0)
    return np.asarray(counts / (len(true) - 1), dtype=np.float64)


def correlation_distance(true: NDArray[Any], made: NDArray[Any]) -> Float64:
    """1 less the correlation of the features (n, d) of each pair; lower is better."""
    return 1 - _correlation(np.asarray(true), np.asarray(made))


def image_retrieval(brain: NDArray[Any], images: NDArray[Any], *, k: int = 1) -> Float64:
    """Whether each brain's own image is among the `k` most similar of all images; chance is k / n.

    Parameters
    ----------
    brain, images : ndarray of shape (n, d)
        Embeddings, row by row of the same trial; compared by cosine.
    k : int

    Returns
    -------
    ndarray of shape (n,), float64
        0 or 1; between them where candidates tie for the last places.

    Notes
    -----
    The published code calls this "bwd"; what it calls "fwd" is `brain_retrieval`, although it is plotted as this.
    """
    return _hits(cosines(brain, images), k)


def brain_retrieval(brain: NDArray[Any], images: NDArray[Any], *, k: int = 1) -> Float64:
    """Whether each image's own brain is among the `k` most similar of all brains; see `image_retrieval`."""
    return _hits(cosines(images, brain), k)


def candidate_draws(n: int, size: int, draws: int, *, seed: int = 42) -> NDArray[np.int64]:
    """Draw candidates without repetition, several times: shape (draws, size).

    The published evaluation takes 30 draws of 300, and the mean of the accuracies within each.
    """
    generator = np.random.RandomState(seed)
    return np.stack([generator.choice(n, size, replace=False) for _ in range(draws)])


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> Float64:
    a, b = (rows - rows.mean(1, keepdims=True, dtype=np.float64) for rows in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1)))


def _hits(similarity: Float64, k: int) -> Float64:
    """Whether the diagonal of each row is among its `k` largest; candidates that tie share the places left."""
    own = np.diag(similarity)[:, None]
    better = np.sum(similarity > own, axis=1)
    tied = np.sum(~(similarity > own) & ~(similarity < own), axis=1)
    return np.asarray(np.clip((k - better) / tied, 0, 1))


def _grey(picture: NDArray[Any]) -> Float64:
    return np.asarray(np.tensordot(_LUMINANCE, picture, axes=1))


def _ssim(a: Float64, b: Float64) -> float:
    def smooth(values: Float64) -> Float64:
        return np.asarray(gaussian_filter(values, _SIGMA, radius=_RADIUS, mode="reflect"))

    mean_a, mean_b = smooth(a), smooth(b)
    variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS].mean())
