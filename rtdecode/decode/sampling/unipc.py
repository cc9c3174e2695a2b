"""UniPC of order 2 (Zhao et al. 2023) as MindEye1's generators run it: diffusers 0.13, ``bh2``, on clean latents.

The last step goes to timestep 0 of the schedule, not to zero noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.sampling.edm import LEVELS, NoisePredictor, network_betas

_ORDER = 2


def unipc_alphas_cumprod() -> NDArray[np.float64]:
    """Signal power left at each timestep, falling: shape (LEVELS,)."""
    return np.asarray(np.cumprod(1 - network_betas()))


def unipc_times(steps: int, strength: float = 1.0) -> NDArray[np.int64]:
    """Timesteps at which the network is called, falling.

    Parameters
    ----------
    steps : int
        Of the whole path.
    strength : float
        Share of it that is run, its end: below 1 for a start from a picture.

    Raises
    ------
    ValueError
        `steps` is not from 1 to `LEVELS`, or too little of the path is left for one step.
    """
    if not 1 <= steps <= LEVELS:
        raise ValueError(f"UniPC steps: expected 1 to {LEVELS}, got {steps}")
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise ValueError(f"UniPC: expected a strength that leaves a step of {steps}, got {strength}")
    return np.linspace(0, LEVELS - 1, steps + 1).round()[::-1][:-1].astype(np.int64)[steps - kept :]


def noised(clean: Any, noise: Any, time: int) -> Any:
    """Add noise to a clean latent up to a timestep."""
    left = float(unipc_alphas_cumprod()[time])
    return clean * math.sqrt(left) + noise * math.sqrt(1 - left)


def unipc(predict: NoisePredictor, x: Any, times: Sequence[int] | NDArray[np.int64]) -> Any:
    """Follow the probability flow with a predictor and a corrector of order 2; the first and last steps are of order 1.

    Parameters
    ----------
    predict : callable
        Latent and timestep to the (guided) noise in it.
    x : array of shape (b, c, h, w)
        Latent at ``times[0]``.
    times : sequence of int
        Of `unipc_times`.

    Returns
    -------
    array of the shape of `x`
        Latent at timestep 0.
    """
    left = unipc_alphas_cumprod()
    path = [*(int(t) for t in times), 0]
    signal, noise = np.sqrt(left[path]), np.sqrt(1 - left[path])
    level = np.log(signal / noise)
    clean: list[Any] = []
    before, order = x, 0
    for i, t in enumerate(path[:-1]):
        found = (x - predict(x, t) * float(noise[i])) * float(1 / signal[i])
        if i:
            x = _corrected(before, [*clean[-order:], found], signal, noise, level, i, order)
        clean = [*clean[-1:], found]
        order = min(_ORDER, i + 1, len(path) - 1 - i)
        before, x = x, _predicted(x, clean[-order:], signal, noise, level, i)
    return x


def _predicted(
    x: Any, clean: Sequence[Any], signal: NDArray[Any], noise: NDArray[Any], level: NDArray[Any], i: int
) -> Any:
    """Step from place `i` of the path to the next with the clean latents of this place and, if any, the one before."""
    h = level[i + 1] - level[i]
    grown = math.expm1(-h)
    moved = x * float(noise[i + 1] / noise[i]) - clean[-1] * float(signal[i + 1] * grown)
    if len(clean) == 1:
        return moved
    slope = (clean[-2] - clean[-1]) * float(h / (level[i - 1] - level[i]))
    return moved - slope * float(0.5 * signal[i + 1] * grown)


def _corrected(
    x: Any, clean: Sequence[Any], signal: NDArray[Any], noise: NDArray[Any], level: NDArray[Any], i: int, order: int
) -> Any:
    """Step from the place before `i` to `i` anew, with the clean latent found there, the last of `clean`."""
    h = level[i] - level[i - 1]
    grown = math.expm1(-h)
    base, found = clean[-2], clean[-1]
    moved = x * float(noise[i] / noise[i - 1]) - base * float(signal[i] * grown)
    if order == 1:
        return moved - (found - base) * float(0.5 * signal[i] * grown)
    ratio = (level[i - 2] - level[i - 1]) / h
    second = grown / -h - 1
    third = second / -h - 0.5
    rhos = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [second / grown, third * 2 / grown])
    change = (clean[-3] - base) * float(rhos[0] / ratio) + (found - base) * float(rhos[1])
    return moved - change * float(signal[i] * grown)
