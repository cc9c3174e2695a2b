"""How publishers of few-step LoRAs of Stable Diffusion 1 sample them, from noise or from a picture: LCM, TCD and DDIM.

Latent consistency models (Luo et al. 2023), trajectory consistency (Zheng et al. 2024), and DDIM (Song et al. 2021) at
timesteps spaced from the end of the schedule. As the published samplers of Stable Diffusion 1 do, TCD and DDIM end at
timestep 0 and not at zero noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rtdecode.decode.sampling.edm import LEVELS, NoisePredictor
from rtdecode.decode.sampling.unipc import unipc_alphas_cumprod

StudentSampler = Literal["lcm", "tcd", "ddim"]
LCM_LEVELS = 50
"""Timesteps that latent consistency models are distilled at."""
_DATA_DEVIATION = 0.5
_TIME_SCALE = 10.0


def student_times(sampler: StudentSampler, steps: int, strength: float = 1.0) -> list[int]:
    """Timesteps at which the network is called, falling.

    Parameters
    ----------
    sampler : {"lcm", "tcd", "ddim"}
    steps : int
    strength : float
        Share of the path that is run, its end: below 1 for a start from a picture. All steps of LCM and TCD are spread
        over that share; of DDIM's, those that lie in it are left.

    Raises
    ------
    ValueError
        As of `lcm_times` and `trailing_times`.
    """
    return trailing_times(steps, strength) if sampler == "ddim" else lcm_times(steps, strength)


def lcm_times(steps: int, strength: float = 1.0) -> list[int]:
    """Spread steps over the `LCM_LEVELS` timesteps that such models were distilled at; see `student_times`.

    Raises
    ------
    ValueError
        `steps` is not from 1 to the number of those timesteps that `strength` leaves.
    """
    levels = np.arange(1, int(LCM_LEVELS * strength) + 1)[::-1] * (LEVELS // LCM_LEVELS) - 1
    if not 1 <= steps <= len(levels):
        raise ValueError(f"steps of a latent consistency model: expected 1 to {len(levels)}, got {steps}")
    places = np.floor(np.linspace(0, len(levels), steps, endpoint=False)).astype(np.int64)
    return [int(t) for t in levels[places]]


def trailing_times(steps: int, strength: float = 1.0) -> list[int]:
    """Space steps evenly from the last timestep; see `student_times`.

    Raises
    ------
    ValueError
        `steps` is not from 1 to `LEVELS`, or too little of the path is left for one step.
    """
    if not 1 <= steps <= LEVELS:
        raise ValueError(f"steps spaced from the end: expected 1 to {LEVELS}, got {steps}")
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise ValueError(f"steps spaced from the end: expected a strength that leaves one of {steps}, got {strength}")
    return [round(LEVELS * (steps - step) / steps) - 1 for step in range(steps)][steps - kept :]


def sample_student(
    sampler: StudentSampler, predict: NoisePredictor, x: Any, noise: Sequence[Any], times: Sequence[int]
) -> Any:
    """Sample as a LoRA's publisher does.

    Parameters
    ----------
    sampler : {"lcm", "tcd", "ddim"}
        TCD is run with all fresh noise (its gamma 1).
    predict : callable
        Latent and timestep to the noise in it.
    x : array of shape (b, c, h, w)
        Latent at ``times[0]``.
    noise : sequence of array of the shape of `x`
        Standard normal, one for each step but the last; DDIM uses none.
    times : sequence of int
        Of `student_times`.

    Returns
    -------
    array of the shape of `x`
    """
    if sampler == "lcm":
        return sample_lcm(predict, x, noise, times)
    return sample_tcd(predict, x, noise, times, gamma=1.0 if sampler == "tcd" else 0.0)


def sample_lcm(predict: NoisePredictor, x: Any, noise: Sequence[Any], times: Sequence[int]) -> Any:
    """Multistep sampling of latent consistency models (Luo et al. 2023, algorithm 3), with their boundary scalings.

    Parameters are those of `sample_student`.
    """
    left = unipc_alphas_cumprod()
    for i, t in enumerate(times):
        signal, level = math.sqrt(left[t]), math.sqrt(1 - left[t])
        scaled, variance = t * _TIME_SCALE, _DATA_DEVIATION**2
        skip, out = variance / (scaled**2 + variance), scaled / math.sqrt(scaled**2 + variance)
        x = (x - predict(x, t) * level) * (out / signal) + x * skip
        if i + 1 < len(times):
            after = left[times[i + 1]]
            x = x * math.sqrt(after) + noise[i] * math.sqrt(1 - after)
    return x


def sample_tcd(predict: NoisePredictor, x: Any, noise: Sequence[Any], times: Sequence[int], *, gamma: float) -> Any:
    """Strategic stochastic sampling (Zheng et al. 2024, algorithm 4); with `gamma` 0 it is DDIM.

    Parameters
    ----------
    predict, x, noise, times
        As of `sample_student`.
    gamma : float
        From 0 to 1: how far below the next timestep each step goes before fresh noise brings it back up.
    """
    left = unipc_alphas_cumprod()
    for i, t in enumerate(times):
        last = i + 1 == len(times)
        after = 0 if last else times[i + 1]
        below = math.floor((1 - gamma) * after)
        found = predict(x, t)
        clean = (x - found * math.sqrt(1 - left[t])) * (1 / math.sqrt(left[t]))
        x = clean * math.sqrt(left[below]) + found * math.sqrt(1 - left[below])
        if gamma > 0 and not last:
            kept = left[after] / left[below]
            x = x * math.sqrt(kept) + noise[i] * math.sqrt(1 - kept)
    return x
