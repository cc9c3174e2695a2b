"""Sampling in a few steps, at any levels: along the probability flow, or with fresh noise at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.sampling.ddpm import Predict


def few_times(levels: int, steps: int) -> list[int]:
    """Levels at which a student is called, falling from the noisiest, evenly spaced.

    Raises
    ------
    ValueError
        `steps` is not from 1 to `levels`.
    """
    if not 1 <= steps <= levels:
        raise ValueError(f"steps: expected 1 to {levels}, got {steps}")
    return [int(t) for t in np.linspace(levels - 1, 0, steps, endpoint=False)]


def sample_few(predict: Predict, noise: Any, alphas_cumprod: NDArray[np.floating], times: Sequence[int]) -> Any:
    """DDIM with eta 0 (Song et al. 2021) from pure noise through the levels given.

    Parameters
    ----------
    predict : callable
        Noisy values and their level to clean values.
    noise : array
        Standard normal, of the shape wanted.
    alphas_cumprod : ndarray of shape (levels,)
        Signal power left at each level.
    times : sequence of int
        Levels at which the network is called, falling; the last call's answer is the result.

    Returns
    -------
    array
        Clean values.
    """
    x = clean = noise
    for i, t in enumerate(times):
        clean = predict(x, t)
        if i + 1 < len(times):
            left, further = float(alphas_cumprod[t]), float(alphas_cumprod[times[i + 1]])
            estimate = (x - clean * math.sqrt(left)) * (1 / math.sqrt(1 - left))
            x = clean * math.sqrt(further) + estimate * math.sqrt(1 - further)
    return clean


def sample_consistency(
    predict: Predict, noise: Sequence[Any], alphas_cumprod: NDArray[np.floating], times: Sequence[int]
) -> Any:
    """Sample a student of one step in several: from each clean answer to the next level with fresh noise.

    Multistep consistency sampling (Song et al. 2023, algorithm 1). What such a student gives is an end of the flow and
    not the mean of all ends, so that steps of `sample_few` from it would change the variance.

    Parameters
    ----------
    predict, alphas_cumprod, times
        As of `sample_few`.
    noise : sequence of array
        Standard normal, of the shape wanted, one for each of `times`.
    """
    x = noise[0]
    for t, after, fresh in zip(times, times[1:], noise[1:], strict=False):
        further = float(alphas_cumprod[after])
        x = predict(x, t) * math.sqrt(further) + fresh * math.sqrt(1 - further)
    return predict(x, times[-1])
