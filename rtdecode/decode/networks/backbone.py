"""MindEye2's ridge and backbone (Scotti et al. 2024); parameter names are those of the published checkpoints.

The published backbone has mixer blocks that cannot reach its output: with one token per sample, the second half of
each block begins with a layer norm over one channel, which is its bias whatever comes in, and the first half's output
is overwritten. Each block therefore adds one constant. `fold_mixers` adds the constants to the biases behind them and
drops the blocks; a `Backbone` of 0 blocks takes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdecode.decode.networks.lowlevel import MAP_CHANNELS, maps_projector, upsampler

_SIDE = 7
_WIDTHS = (32, 64, 128)
_BLOCK_DROP = 0.15
_LOW_DROP = 0.3
_MIXERS = "mixer_blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneShape:
    """Sizes of a backbone.

    Attributes
    ----------
    hidden : int
        Values that the ridge gives.
    tokens, dim : int
        Image tokens of a picture and channels of each.
    blocks : int
        Mixer blocks: 4 as published and for training, 0 once folded.
    low_level : bool
        Whether there is a low-level branch.
    """

    hidden: int = 4096
    tokens: int = 256
    dim: int = 1664
    blocks: int = 4
    low_level: bool = True


class BackboneOutput(NamedTuple):
    """What a backbone says of a batch.

    Attributes
    ----------
    tokens : Tensor of shape (b, tokens, dim)
        Condition of the prior.
    retrieval : Tensor of shape (b, tokens, dim)
        For comparing with a picture's tokens; not normalised.
    latent : Tensor of shape (b, 4, 28, 28) or None
        Blurry picture in the latent space of Stable Diffusion's autoencoder, times 0.18215.
    features : Tensor of shape (b, 49, 512) or None
        Aligned with a teacher's in training.
    """

    tokens: Tensor
    retrieval: Tensor
    latent: Tensor | None
    features: Tensor | None


class Ridge(nn.Module):  # type: ignore[misc]
    """One linear layer per participant: betas (b, v) to (b, 1, hidden)."""

    def __init__(self, voxels: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(v, hidden) for v in voxels)

    def forward(self, betas: Tensor, participant: int = 0) -> Tensor:
        """Map one participant's betas."""
        out: Tensor = self.linears[participant](betas)
        return out[:, None]


class Backbone(nn.Module):  # type: ignore[misc]
    """Ridge output (b, 1, hidden) to image tokens, retrieval tokens and a blurry latent.

    Parameters
    ----------
    shape : BackboneShape
    """

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.shape = shape
        if shape.blocks:
            self.mixer_blocks1 = nn.ModuleList(_mixer(shape.hidden) for _ in range(shape.blocks))
            self.mixer_blocks2 = nn.ModuleList(_mixer(1) for _ in range(shape.blocks))
        self.backbone_linear = nn.Linear(shape.hidden, shape.tokens * shape.dim)
        self.clip_proj = nn.Sequential(
            *(
                layer
                for i in range(3)
                for layer in (nn.LayerNorm(shape.dim), nn.GELU(), nn.Linear(shape.dim, shape.dim))
            )
        )
        if shape.low_level:
            self.blin1 = nn.Linear(shape.hidden, MAP_CHANNELS * _SIDE * _SIDE)
            self.bdropout = nn.Dropout(_LOW_DROP)
            self.bnorm = nn.GroupNorm(1, MAP_CHANNELS)
            self.bupsampler = upsampler(_WIDTHS)
            self.b_maps_projector = maps_projector()

    def mix(self, x: Tensor) -> Tensor:
        """Pass (b, 1, hidden) through the mixer blocks, as published."""
        if not self.shape.blocks:
            return x
        first, second = x, x.transpose(1, 2)
        for block1, block2 in zip(self.mixer_blocks1, self.mixer_blocks2, strict=True):
            first = block1(x) + first
            second = block2(first.transpose(1, 2)) + second
            x = second.transpose(1, 2)
        return x

    def forward(self, x: Tensor) -> BackboneOutput:
        """Decode ridge output."""
        flat = self.mix(x).flatten(1)
        tokens = self.backbone_linear(flat).unflatten(1, (self.shape.tokens, self.shape.dim))
        retrieval = self.clip_proj(tokens)
        if not self.shape.low_level:
            return BackboneOutput(tokens, retrieval, None, None)
        coarse = self.bnorm(self.bdropout(self.blin1(flat)).unflatten(1, (MAP_CHANNELS, _SIDE, _SIDE)))
        features = self.b_maps_projector(coarse).flatten(2).transpose(1, 2)
        return BackboneOutput(tokens, retrieval, self.bupsampler(coarse), features)


def mixer_constant(state: Mapping[str, Tensor]) -> float:
    """Sum of the constants that the mixer blocks of a published backbone add.

    Parameters
    ----------
    state : mapping of str to Tensor
        State dict of a `Backbone`.
    """
    blocks = len({key.split(".")[1] for key in state if key.startswith(f"{_MIXERS}2.")})
    total = 0.0
    for i in range(blocks):
        part = {key: state[f"{_MIXERS}2.{i}.{key}"].double() for key in _SECOND}
        # A layer norm over one channel gives its bias.
        hidden = functional.gelu(part["1.0.weight"][0, 0] * part["0.bias"][0] + part["1.0.bias"][0])
        total += float(part["1.3.weight"][0, 0] * hidden + part["1.3.bias"][0])
    return total


def fold_mixers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the same backbone with 0 blocks: the constants are added to the biases behind the blocks."""
    constant = mixer_constant(state)
    folded = {key: value for key, value in state.items() if not key.startswith(_MIXERS)}
    for layer in ("backbone_linear", "blin1"):
        if f"{layer}.weight" in folded:
            weight, bias = folded[f"{layer}.weight"], folded[f"{layer}.bias"]
            # Row by row in float64: the sums of thousands of weights would lose digits in the checkpoint's precision.
            sums = torch.cat([part.double().sum(1) for part in weight.split(1 << 12)])
            folded[f"{layer}.bias"] = (bias.double() + constant * sums).to(bias.dtype)
    return folded


_SECOND = ("0.bias", "1.0.weight", "1.0.bias", "1.3.weight", "1.3.bias")


def _mixer(width: int) -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(_BLOCK_DROP), nn.Linear(width, width))
    return nn.Sequential(nn.LayerNorm(width), inner)
