"""Sampler of the unCLIP and the refinement: sgm's discrete Euler EDM (Karras et al. 2022) with guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
NoisePredictor = Callable[[Any, int], Any]
"""Scaled latent and network timestep to (guided) noise."""

LEVELS = 1000
"""Noise levels of the diffusion that the network was trained for."""
OFFSET_NOISE = 0.04
"""Weight of the one draw per sample that is added to all of its initial noise."""
_FIRST_BETA, _LAST_BETA = 0.00085, 0.0120


def network_betas() -> NDArray[np.float64]:
    """Variance added at each level of Stable Diffusion's schedule, rising: shape (LEVELS,)."""
    return np.asarray(np.linspace(_FIRST_BETA**0.5, _LAST_BETA**0.5, LEVELS) ** 2)


def network_sigmas() -> Float32:
    """Noise over signal of each level, rising: shape (LEVELS,)."""
    left = np.cumprod(1 - network_betas())
    return np.sqrt((1 - left) / left).astype(np.float32)


def network_alphas_cumprod() -> NDArray[np.float64]:
    """Signal power left at each level, falling: shape (LEVELS,)."""
    return 1 / (1 + network_sigmas().astype(np.float64) ** 2)


def euler_times(steps: int) -> tuple[NDArray[np.int64], Float32]:
    """Network timesteps (steps,), falling, and their sigmas (steps + 1,), the last 0.

    The spacing is sgm's; none of the spacings that diffusers names gives it.

    Raises
    ------
    ValueError
        `steps` is not from 1 to `LEVELS`.
    """
    if not 1 <= steps <= LEVELS:
        raise ValueError(f"Euler steps: expected 1 to {LEVELS}, got {steps}")
    times = np.linspace(LEVELS - 1, 0, steps, endpoint=False).astype(np.int64)
    if steps == LEVELS:
        times = np.arange(LEVELS)[::-1].astype(np.int64)
    return times, np.append(network_sigmas()[times], np.float32(0))


def timed(times: Sequence[int]) -> tuple[NDArray[np.int64], Float32]:
    """Give chosen network timesteps (n,), falling, their sigmas (n + 1,), the last 0."""
    chosen = np.asarray(times, np.int64)
    return chosen, np.append(network_sigmas()[chosen], np.float32(0))


def refinement_times(steps: int, timepoint: int) -> tuple[NDArray[np.int64], Float32]:
    """Last steps of `euler_times`, for a start from a picture.

    Parameters
    ----------
    steps : int
        Steps of the whole path.
    timepoint : int
        Sigmas kept, the final 0 among them: `timepoint` - 1 steps are left.
    """
    times, sigmas = euler_times(steps)
    return times[steps + 1 - timepoint :], sigmas[-timepoint:]


def offset_noise(noise: Any, offset: Any) -> Any:
    """Add to all values of noise (b, 4, h, w) the one `offset` (b,) of their sample; both are standard normal."""
    return noise + OFFSET_NOISE * offset[:, None, None, None]


def unclip_start(latent: Any, noise: Any, offset: Any, sigma: float) -> Any:
    """Make the initial latent: `latent` and noise with its offset at noise level `sigma`.

    Parameters
    ----------
    latent, noise : array of shape (b, 4, h, w)
        Both standard normal in the published decoder.
    offset : array of shape (b,)
        Standard normal, one a sample.
    sigma : float
        First sigma of the path.
    """
    return latent + offset_noise(noise, offset) * float(sigma)


def guide(conditional: Any, unconditional: Any, scale: float) -> Any:
    """Classifier-free guidance: `scale` 1 is the conditional prediction."""
    return unconditional + (conditional - unconditional) * scale


def euler(predict: NoisePredictor, x: Any, times: Sequence[int] | NDArray[np.int64], sigmas: Float32) -> Any:
    """Follow the probability flow in Euler steps.

    Parameters
    ----------
    predict : callable
        Latent scaled to unit variance, and the network timestep, to the noise in it.
    x : array of shape (b, 4, h, w)
        Latent at noise level ``sigmas[0]``.
    times : sequence of int of length n
    sigmas : ndarray of shape (n + 1,)

    Returns
    -------
    array of the shape of `x`
    """
    for t, sigma, after in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        scaled = x * float(1 / np.sqrt(np.float64(sigma) ** 2 + 1))
        x = x + predict(scaled, int(t)) * float(after - sigma)
    return x


def renoised(
    predict: NoisePredictor, x: Any, noise: Sequence[Any], times: Sequence[int] | NDArray[np.int64], sigmas: Float32
) -> Any:
    """Sample a student of one step in several: from each clean latent up to the next level with fresh noise.

    Multistep consistency sampling (Song et al. 2023, algorithm 1). Steps of `euler` from what such a student gives
    would change the variance, as it gives an end of the path and not the mean of all ends.

    Parameters
    ----------
    predict, x, times, sigmas
        As of `euler`.
    noise : sequence of n - 1 array of the shape of `x`
        Standard normal.
    """
    for i, (t, sigma) in enumerate(zip(times, sigmas[:-1], strict=True)):
        scaled = x * float(1 / np.sqrt(np.float64(sigma) ** 2 + 1))
        x = x - predict(scaled, int(t)) * float(sigma)
        if i + 1 < len(times):
            x = x + noise[i] * float(sigmas[i + 1])
    return x
