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

from rtdecode.evaluate import metrics
from rtdecode.statistics import bootstrap_interval

POOL = 64
_RESAMPLES = 2000


def pix_corr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of the pixels (n,) of pictures (n, 3, h, w)."""
    return torch.from_numpy(metrics.pixcorr(truth.numpy(), pictures.numpy(), px=truth.shape[-1])).float()


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (n,) of pictures (n, 3, h, w)."""
    return torch.from_numpy(metrics.ssim(truth.numpy(), pictures.numpy(), px=truth.shape[-1])).float()


def identified(given: Tensor, truth: Tensor) -> Tensor:
    """Whether (n,) given vectors (n, f) are nearest to their own truth among `POOL`, by cosine; chance 1 / `POOL`."""
    hits = [
        (functional.normalize(a) @ functional.normalize(b).T).argmax(1) == torch.arange(len(a))
        for a, b in zip(given.split(POOL), truth.split(POOL), strict=True)
    ]
    return torch.cat(hits).float()


def two_way(given: Tensor, truth: Tensor) -> Tensor:
    """Share (n,) of the other pictures whose truth is less correlated with the given vector; chance .5."""
    counts = metrics.two_way_counts(truth.numpy(), given.numpy())
    return torch.from_numpy(counts / (len(counts) - 1)).float()


def interval(values: Tensor | NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over pictures."""
    return bootstrap_interval(np.asarray(values), np.random.default_rng(seed), resamples=_RESAMPLES)
