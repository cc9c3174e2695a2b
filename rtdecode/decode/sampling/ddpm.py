"""Samplers of the prior: DDPM over all noise levels, DDIM over fewer, as dalle2-pytorch 1.15.6 runs them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rtdecode.decode.sampling.schedule import CosineSchedule

Predict = Callable[[Any, int], Any]
"""Noisy tokens and their noise level to clean tokens."""


def ddim_times(timesteps: int, steps: int) -> list[int]:
    """Noise levels visited by `ddim`, falling, ending with -1 (no noise); the network is called at all but the last.

    Raises
    ------
    ValueError
        Fewer than 2 steps, which would call no network, or more than there are noise levels.
    """
    if not 2 <= steps <= timesteps:
        raise ValueError(f"DDIM steps: expected 2 to {timesteps} (n steps are n - 1 network calls), got {steps}")
    # torch.linspace: a float32 step, counted from the nearer end, each level rounded to float32 once. The levels are
    # truncated to integers, so the rounding decides some of them.
    step = float(np.float32(timesteps + 1) / np.float32(steps))
    index = np.arange(steps)
    levels = np.where(index < (steps + 1) // 2, -1 + step * index, timesteps - step * (steps - index))
    return [int(level) for level in levels.astype(np.float32)[::-1]]


def count_draws(timesteps: int, steps: int) -> int:
    """Noise draws that `sample_prior` consumes, the initial one among them."""
    if steps == timesteps:
        return steps + 1
    # The start is drawn at the first level, and fresh noise for every further one but 0, where none is left.
    return sum(level > 0 for level in ddim_times(timesteps, steps))


def sample_prior(predict: Predict, noise: Sequence[Any], schedule: CosineSchedule, *, steps: int) -> Any:
    """Sample as the published decoders do: DDPM at the full number of steps, DDIM with eta 1 below it.

    Parameters
    ----------
    predict : callable
        Noisy tokens and their noise level to clean tokens.
    noise : sequence of array
        `count_draws` standard normal draws of the tokens' shape, the start first.
    schedule : CosineSchedule
    steps : int

    Returns
    -------
    array
        Clean tokens.
    """
    expected = count_draws(schedule.timesteps, steps)
    if len(noise) != expected:
        raise ValueError(f"expected {expected} noise draws for {steps} steps, got {len(noise)}")
    if steps == schedule.timesteps:
        return ddpm(predict, noise, schedule)
    return ddim(predict, noise, schedule, steps=steps)


def ddim(predict: Predict, noise: Sequence[Any], schedule: CosineSchedule, *, steps: int, eta: float = 1.0) -> Any:
    """DDIM (Song et al. 2021) on a subset of the noise levels.

    As published, the signal left is read from ``alphas_cumprod_prev`` while the noise is estimated with
    ``sqrt_recip_alphas_cumprod`` of the same level.

    Parameters
    ----------
    predict, noise, schedule, steps
        As in `sample_prior`; nothing is drawn for level 0, nor after the last network call.
    eta : float
        1 draws as much fresh noise as DDPM would, 0 none.
    """
    x = noise[0]
    clean = x
    draws = iter(noise[1:])
    for t, t_next in itertools.pairwise(ddim_times(schedule.timesteps, steps)):
        clean = predict(x, t)
        if t_next < 0:
            break
        if t_next == 0:
            x = clean
            continue
        estimate = x * float(schedule.sqrt_recip_alphas_cumprod[t]) - clean
        estimate = estimate / float(schedule.sqrt_recipm1_alphas_cumprod[t])
        # In float32 as published: the differences of numbers near 1 lose digits, and the loop carries them on.
        one = np.float32(1)
        left, left_next = schedule.alphas_cumprod_prev[t], schedule.alphas_cumprod_prev[t_next]
        fresh = np.float32(eta) * np.sqrt((one - left / left_next) * (one - left_next) / (one - left))
        kept = np.sqrt(one - left_next - fresh * fresh)
        x = clean * float(np.sqrt(left_next)) + next(draws) * float(fresh) + estimate * float(kept)
    return clean


def ddpm(predict: Predict, noise: Sequence[Any], schedule: CosineSchedule) -> Any:
    """Ancestral sampling over every noise level (Ho et al. 2020).

    Parameters
    ----------
    predict, noise, schedule
        As in `sample_prior`; the draw of the last step is not used.
    """
    x = noise[0]
    draws = iter(noise[1:])
    for t in reversed(range(schedule.timesteps)):
        draw = next(draws)
        mean = predict(x, t) * float(schedule.posterior_mean_coef1[t]) + x * float(schedule.posterior_mean_coef2[t])
        x = mean if t == 0 else mean + draw * math.exp(0.5 * float(schedule.posterior_log_variance_clipped[t]))
    return x
