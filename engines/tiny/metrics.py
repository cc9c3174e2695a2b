"""Figures of merit of reconstructions, one value a picture, and their intervals (torch).

Pictures are compared at their own 64 px; the papers' protocol, which enlarges them first, is in `rtdecode.evaluate`.
Import this module inside functions only.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rtdecode.evaluate.metrics import two_way_counts

POOL = 64
_GREY = (0.2125, 0.7154, 0.0721)
_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_K1, _K2 = 0.01, 0.03
_RESAMPLES = 2000


def pix_corr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of the pixels (n,) of pictures (n, 3, h, w)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (pictures, truth))
    return functional.cosine_similarity(a, b, dim=1)


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (n,) of the grey pictures, 0..1, with Gaussian weights (Wang et al. 2004)."""
    at = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=torch.float32)
    window = torch.exp(-0.5 * (at / _SSIM_SIGMA) ** 2)
    window = window / window.sum()

    def smooth(x: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(x, window[None, None, :, None]), window[None, None, None])

    grey = torch.tensor(_GREY)[None, :, None, None]
    a, b = ((x * grey).sum(1, keepdim=True) for x in (pictures, truth))
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _K1**2) * (2 * both + _K2**2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + _K1**2) * (var_a + var_b + _K2**2))
    return similarity.mean((1, 2, 3))


def identified(given: Tensor, truth: Tensor) -> Tensor:
    """Whether (n,) given vectors (n, f) are nearest to their own truth among `POOL`, by cosine; chance 1 / `POOL`."""
    hits = [
        (functional.normalize(a) @ functional.normalize(b).T).argmax(1) == torch.arange(len(a))
        for a, b in zip(given.split(POOL), truth.split(POOL), strict=True)
    ]
    return torch.cat(hits).float()


def two_way(given: Tensor, truth: Tensor) -> Tensor:
    """Share (n,) of the other pictures whose truth is less correlated with the given vector; chance .5."""
    counts = two_way_counts(truth.numpy(), given.numpy())
    return torch.from_numpy(counts / (len(counts) - 1)).float()


def interval(values: Tensor | NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over pictures."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(len(array), size=len(array))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
