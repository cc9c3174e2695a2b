"""Tokens as a brain gives them: shrunk, and with noise that has the tokens' own covariance.

A ridge regression that explains a fraction R2 of each target dimension predicts
``mu + R2 (z - mu) + sqrt(R2 (1 - R2)) eps`` with ``eps ~ N(0, Cov)``. Noise of equal variance in all directions of the
ambient space would flatter: most of it would lie where no picture varies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.tiny import layout

GROUPS = (slice(0, layout.SEMANTIC_VALUES), slice(layout.SEMANTIC_VALUES, layout.VALUES))


class GroupNoise:
    """Mean and principal axes of each token group.

    Parameters
    ----------
    tokens : Tensor of shape (n, TOKENS, CHANNELS)
        Clean tokens of a sample of pictures.
    """

    def __init__(self, tokens: Tensor) -> None:
        flat = tokens.flatten(1).double()
        self.mean = flat.mean(0).float()
        self.axes: list[Tensor] = []
        self.deviations: list[Tensor] = []
        for group in GROUPS:
            values, vectors = torch.linalg.eigh(torch.cov(flat[:, group].T))
            keep = values > 1e-6 * values.max()
            self.axes.append(vectors[:, keep].flip(1).float())
            self.deviations.append(values[keep].flip(0).sqrt().float())

    def __call__(self, tokens: Tensor, r2: Tensor, generator: torch.Generator, spread: float = 0.0) -> Tensor:
        """Shrunk and noised tokens.

        Parameters
        ----------
        tokens : Tensor of shape (b, TOKENS, CHANNELS)
        r2 : Tensor of shape (b, 2)
            Explained variance of the semantic and spatial groups.
        generator : torch.Generator
        spread : float
            Standard deviation of the log of each axis' own R2 about that of its group: in a brain some
            dimensions are clearer than others.
        """
        flat = tokens.flatten(1) - self.mean
        out = torch.empty_like(flat)
        for i, group in enumerate(GROUPS):
            scores = flat[:, group] @ self.axes[i]
            scatter = torch.randn(scores.shape, generator=generator) * spread - 0.5 * spread**2
            axis_r2 = (r2[:, i : i + 1] * scatter.exp()).clamp(0, 0.98 if spread else 1)
            eps = torch.randn(scores.shape, generator=generator) * self.deviations[i]
            noised = axis_r2 * scores + (axis_r2 * (1 - axis_r2)).sqrt() * eps
            out[:, group] = noised @ self.axes[i].T
        return (out + self.mean).reshape(tokens.shape)
