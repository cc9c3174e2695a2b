"""Tokens as the pack's picture networks will be given them, for training (torch). Import inside functions only."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.tiny import layout, networks
from engines.tiny.noise import GroupNoise

_CLEAN_SHARE = 0.4
_CODE = layout.code_slices()
_SCRAMBLED = 7


def noisy_tokens(noise: GroupNoise, tokens: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shrunk and noised tokens at any R2, half of them with uneven R2 over axes, and the R2 (n, 2) of both groups."""
    n = len(tokens)
    shared = 0.03 + 0.95 * torch.rand((n, 1), generator=draw)
    r2 = (shared + 0.15 * torch.randn((n, 2), generator=draw)).clamp(0.02, 0.98)
    half = n // 2
    exact = noise(tokens[:half], r2[:half], draw)
    uneven = noise(tokens[half:], r2[half:], draw, spread=0.5)
    return torch.cat([exact, uneven]), r2


def hard_code(tokens: Tensor, codes: Tensor) -> Tensor:
    """Join the true classes and the geometry that the embedder reads."""
    geometry = networks.read_code(tokens)[:, _CODE[3]] * (1 - codes[:, _SCRAMBLED : _SCRAMBLED + 1])
    return torch.cat([codes[:, : _CODE[3].start], geometry], 1)


def filled_tokens(
    prior: networks.TinyPrior, noise: GroupNoise, tokens: Tensor, codes: Tensor, draw: torch.Generator
) -> Tensor:
    """Noisy tokens as the prior cleans them when the true code is committed to."""
    with torch.no_grad():
        noisy, r2 = noisy_tokens(noise, tokens, draw)
        seen, spatial = prior.see(noisy, r2)
        code = hard_code(tokens, codes)
        return prior.compose(code, prior.fill(seen, spatial, code))


def given_tokens(
    prior: networks.TinyPrior, noise: GroupNoise, tokens: Tensor, codes: Tensor, draw: torch.Generator
) -> Tensor:
    """Return true tokens for two pictures in five, for the others `filled_tokens`."""
    filled = filled_tokens(prior, noise, tokens, codes, draw)
    clean = torch.rand((len(tokens), 1, 1), generator=draw) < _CLEAN_SHARE
    return torch.where(clean, tokens, filled)


def through_noise(
    prior: networks.TinyPrior, noise: GroupNoise, tokens: Tensor, level: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Shrunk and noised tokens at an R2, what the commitment makes of them, and the category committed to."""
    draw = torch.Generator().manual_seed(seed + round(1000 * level))
    r2 = torch.full((len(tokens), 2), level)
    noisy = noise(tokens, r2, draw)
    with torch.no_grad():
        clean, probabilities = prior(noisy, r2, torch.zeros(len(tokens), layout.BLOCKS[0]))
    return noisy, clean, probabilities.argmax(1)
