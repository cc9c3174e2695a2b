"""Noise schedule of the prior: the cosine schedule of Nichol & Dhariwal (2021) as dalle2-pytorch tabulates it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_OFFSET = 0.008
_MAX_BETA = 0.999
_MIN_VARIANCE = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CosineSchedule:
    """Tables of shape (timesteps,), float32, computed in float64; names as in the published checkpoints.

    Attributes
    ----------
    betas, alphas_cumprod, alphas_cumprod_prev : ndarray
        Variance added at a step; signal left after it, and before it.
    sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, log_one_minus_alphas_cumprod : ndarray
    sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod : ndarray
        ``sqrt(1 / a)`` and ``sqrt(1 / a - 1)``.
    posterior_variance, posterior_log_variance_clipped, posterior_mean_coef1, posterior_mean_coef2 : ndarray
        Of the step before given the clean tokens (coefficient 1) and the noisy ones (coefficient 2).
    p2_loss_weight : ndarray
        Ones: the published prior weighs all levels alike.
    """

    betas: Float32
    alphas_cumprod: Float32
    alphas_cumprod_prev: Float32
    sqrt_alphas_cumprod: Float32
    sqrt_one_minus_alphas_cumprod: Float32
    log_one_minus_alphas_cumprod: Float32
    sqrt_recip_alphas_cumprod: Float32
    sqrt_recipm1_alphas_cumprod: Float32
    posterior_variance: Float32
    posterior_log_variance_clipped: Float32
    posterior_mean_coef1: Float32
    posterior_mean_coef2: Float32
    p2_loss_weight: Float32

    @property
    def timesteps(self) -> int:
        """Number of noise levels."""
        return len(self.betas)

    def tables(self) -> dict[str, Float32]:
        """All tables by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


def cosine_schedule(timesteps: int) -> CosineSchedule:
    """Tabulate the cosine schedule for a number of noise levels."""
    at = np.linspace(0, timesteps, timesteps + 1) / timesteps
    signal = np.cos((at + _OFFSET) / (1 + _OFFSET) * np.pi / 2) ** 2
    betas = np.clip(1 - signal[1:] / signal[:-1], 0, _MAX_BETA)
    left = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], left[:-1]])
    variance = betas * (1 - before) / (1 - left)
    tables = {
        "betas": betas,
        "alphas_cumprod": left,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(left),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - left),
        "log_one_minus_alphas_cumprod": np.log(1 - left),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / left),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / left - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, _MIN_VARIANCE)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - left),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - left),
        "p2_loss_weight": np.ones(timesteps),
    }
    return CosineSchedule(**{name: table.astype(np.float32) for name, table in tables.items()})
