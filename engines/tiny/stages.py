"""The networks of the pack as they are exported, and examples of their inputs (torch). Import inside functions only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engines.tiny import layout, networks
from engines.tiny.diffusion import LATENT_CHANNELS, LATENT_SIDE, TinyAutoencoder, TinyUnclip
from engines.tiny.few_steps import FewSteps
from engines.tiny.tiny_prior import DiffusionPrior
from engines.tiny.train import Trained
from rtdecode.decode.sampling.edm import LEVELS

_EXAMPLES = 3


class Stage(NamedTuple):
    """A network to export.

    Attributes
    ----------
    module : Module
    inputs : dict of str to Tensor
        Examples, three of each, in the order of the arguments.
    outputs : tuple of str
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class PriorStage(nn.Module):  # type: ignore[misc]
    """One evaluation of the prior: clean tokens, standardised and as they are."""

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate."""
        clean = self.prior(noisy, t, tokens)
        return clean, self.prior.natural(clean)


class ContextStage(nn.Module):  # type: ignore[misc]
    """What is computed once a picture: keys and values of the cross-attention, the draft and its latent."""

    def __init__(self, decoder: networks.TinyDecoder, autoencoder: TinyAutoencoder, unclip: TinyUnclip) -> None:
        super().__init__()
        self.decoder = decoder
        self.encoder = autoencoder.encoder
        self.scale = autoencoder.scale
        self.unclip = unclip

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Context, draft and its latent."""
        draft = self.decoder(tokens)
        return self.unclip.context(tokens), draft, self.scale(self.encoder(draft * 2 - 1))


def stages(trained: Trained, few: FewSteps) -> dict[str, Stage]:
    """All stages that are networks; the adapter, whose weights are inputs, is none."""
    tokens = trained.tokens[:_EXAMPLES].clone()
    context_stage = ContextStage(trained.decoder, few.autoencoder, few.unclip)
    with torch.no_grad():
        context, draft, draft_latent = (part.clone() for part in context_stage(tokens))
    latent = torch.randn(_EXAMPLES, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    r2, bias = torch.rand(_EXAMPLES, 2), torch.zeros(_EXAMPLES, layout.BLOCKS[0])
    noisy = torch.randn_like(tokens)
    t = torch.tensor([3, 40, 99])
    unclip_t = torch.tensor([LEVELS - 1, LEVELS // 2, LEVELS // 20])
    pictures = torch.rand(_EXAMPLES, *networks.picture_shape())
    return {
        "embedder": Stage(trained.embedder, {"image": pictures}, ("tokens",)),
        "commit": Stage(
            trained.prior, {"tokens": tokens, "r2": r2, "category_bias": bias}, ("tokens_clean", "category")
        ),
        "prior": Stage(PriorStage(few.prior), {"noisy": noisy, "t": t, "tokens": tokens}, ("clean", "tokens_clean")),
        "unclip_context": Stage(context_stage, {"tokens": tokens}, ("context", "draft", "draft_latent")),
        "unclip": Stage(
            few.unclip,
            {"latent": latent, "t": unclip_t, "draft_latent": draft_latent, "context": context},
            ("noise",),
        ),
        "autoencoder": Stage(few.autoencoder, {"latent": latent, "draft": draft}, ("image",)),
        "captioner": Stage(trained.captioner, {"tokens": tokens}, ("words", "probability")),
    }
