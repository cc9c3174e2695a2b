"""The tiny pack's diffusion prior (torch). Import this module inside functions only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.tiny import layout
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.sampling.schedule import CosineSchedule, cosine_schedule

TIMESTEPS = 100


class DiffusionPrior(nn.Module):  # type: ignore[misc]
    """Predicts clean tokens from noisy ones and from what the commitment makes of a brain's.

    The published network on standardised tokens, which predicts what is to be added to the condition: untrained it is
    the regression. The semantic tokens are the condition's, as committed to.
    """

    def __init__(self, depth: int = 6, heads: int = 8, dim_head: int = 16) -> None:
        super().__init__()
        shape = PriorShape(
            tokens=layout.TOKENS,
            dim=layout.CHANNELS,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            timesteps=TIMESTEPS,
        )
        self.network = PriorNetwork(shape)
        nn.init.zeros_(self.network.causal_transformer.project_out.weight)
        self.register_buffer("mean", torch.zeros(layout.TOKENS, layout.CHANNELS))
        self.register_buffer("std", torch.ones(layout.TOKENS, layout.CHANNELS))

    def set_statistics(self, tokens: Tensor) -> None:
        """Take mean and deviation of a sample of clean tokens (n, TOKENS, CHANNELS)."""
        self.mean.copy_(tokens.mean(0))
        self.std.copy_(tokens.std(0).clamp_min(0.02))

    def standard(self, tokens: Tensor) -> Tensor:
        """Standardise tokens."""
        return (tokens - self.mean) / self.std

    def natural(self, standard: Tensor) -> Tensor:
        """Undo `standard`."""
        return standard * self.std + self.mean

    def clean(
        self,
        noisy: Tensor,
        t: Tensor,
        condition: Tensor,
        *,
        keep_condition: Tensor | None = None,
        keep_image: Tensor | None = None,
    ) -> Tensor:
        """Clean standardised tokens; parameters as `PriorNetwork.forward`, the condition standardised too."""
        more = self.network(noisy, t, condition, keep_condition=keep_condition, keep_image=keep_image)
        kept = condition if keep_condition is None else condition * keep_condition[:, None, None]
        semantic = layout.SEMANTIC_TOKENS
        return torch.cat([kept[:, :semantic], kept[:, semantic:] + more[:, semantic:]], 1)

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """One evaluation at run time.

        Parameters
        ----------
        noisy : Tensor of shape (b, TOKENS, CHANNELS)
            Standardised.
        t : Tensor of shape (b,), int64
        tokens : Tensor of shape (b, TOKENS, CHANNELS)
            Of the commitment, as they are.

        Returns
        -------
        Tensor of shape (b, TOKENS, CHANNELS)
            Clean standardised tokens.
        """
        return self.clean(noisy, t, self.standard(tokens))


def prior_schedule() -> CosineSchedule:
    """Noise levels of the prior."""
    return cosine_schedule(TIMESTEPS)
