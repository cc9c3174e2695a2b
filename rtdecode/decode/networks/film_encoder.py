"""The encoding network MIRAGE (EPFL 2026): features of a film to responses; parameter names are the published ones.

Each half second of a film has features of every layer of a language model for text, audio and vision. A pooler per
modality attends over the layers, a transformer over the frames of a window, and a head per subject gives parcels. Not
the decoder of imagery of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MODALITIES = ("text", "audio", "vision")
"""In the order in which their projections are joined."""
Rotary = Literal["interleaved", "halfsplit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmEncoderShape:
    """Sizes of the network, and which of its three numerics it was trained with.

    Attributes
    ----------
    layers, features : int
        Of the language model, and values of each.
    queries, pool_heads, projected : int
        Of a pooler, and values of its projection.
    hidden, depth, heads, multiple : int
        Of the transformer: width, blocks, heads, and hidden values of its feed-forward over the width.
    places : int
        Longest window, frames.
    subjects, parcels : int
        Of the heads.
    frames, volumes : int
        Of a window.
    rotary : {"interleaved", "halfsplit"}
        Which halves of a head are rotated together.
    unit_offset : bool
        Whether gains are stored as their difference from one.
    """

    layers: int = 49
    features: int = 2048
    queries: int = 24
    pool_heads: int = 4
    projected: int = 1024
    hidden: int = 3072
    depth: int = 8
    heads: int = 8
    multiple: int = 4
    places: int = 1024
    subjects: int = 4
    parcels: int = 1000
    frames: int = 298
    volumes: int = 100
    rotary: Rotary = "interleaved"
    unit_offset: bool = True


class Pooled(NamedTuple):
    """A modality's queries, joined, (b, t, queries * features), and their attention (b, t, heads, queries, layers)."""

    values: Tensor
    attention: Tensor


class FilmPrediction(NamedTuple):
    """What a window gives.

    Attributes
    ----------
    predicted : Tensor of shape (b, subjects, volumes, parcels)
    trunk : Tensor of shape (b, volumes, hidden)
        What the heads read, averaged to volumes.
    attention : Tensor of shape (b, modalities, layers)
        Mean over frames, heads and queries: how much each layer counts.
    """

    predicted: Tensor
    trunk: Tensor
    attention: Tensor


class FilmEncoder(nn.Module):  # type: ignore[misc]
    """Features of a window (b, layers, frames, features) of each modality to `FilmPrediction`.

    Parameters
    ----------
    shape : FilmEncoderShape
    """

    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.layer_poolers = nn.ModuleDict({name: LayerPooler(shape) for name in MODALITIES})
        self.projectors = nn.ModuleDict({name: _Projector(shape) for name in MODALITIES})
        self.temporal_encoder = _TemporalEncoder(shape)
        self.head = _Heads(shape)
        self.register_buffer("to_volumes", averaging(shape.frames, shape.volumes), persistent=False)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, present: Tensor) -> FilmPrediction:
        """Predict a window.

        Parameters
        ----------
        text, audio, vision : Tensor of shape (b, layers, frames, features)
        present : Tensor of shape (b, modalities)
            0 where a modality is missing: its projection is zeroed, as the training does; 1 elsewhere.
        """
        fused, attention = self.fuse((text, audio, vision), present)
        trunk = self.to_volumes @ self.temporal_encoder(fused)
        return FilmPrediction(self.head(trunk), trunk, attention)

    def fuse(self, given: tuple[Tensor, Tensor, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the joined projections (b, t, 3 * projected) and the attention over layers (b, modalities, layers)."""
        projected, attended = [], []
        for place, (name, layers) in enumerate(zip(MODALITIES, given, strict=True)):
            pooled = self.layer_poolers[name](layers)
            projected.append(self.projectors[name](pooled.values) * present[:, place, None, None])
            attended.append(pooled.attention.mean((1, 2, 3)))
        return torch.cat(projected, -1), torch.stack(attended, 1)


class LayerPooler(nn.Module):  # type: ignore[misc]
    """Attention of learned queries over the layers, anew for each frame."""

    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(shape.queries, shape.features))
        self.input_norm = nn.LayerNorm(shape.features)
        self.output_norm = nn.LayerNorm(shape.features)
        self.attn = _CrossAttention(shape.features, shape.pool_heads)

    def forward(self, layers: Tensor) -> Pooled:
        """Pool features (b, layers, t, features)."""
        given = self.input_norm(layers.transpose(1, 2))
        values, attention = self.attn(self.query_tokens, given)
        return Pooled(self.output_norm(values).flatten(-2), attention)


class _CrossAttention(nn.Module):  # type: ignore[misc]
    """As `torch.nn.MultiheadAttention`, of queries that all frames share; it also gives the attention of each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self._heads = heads

    def forward(self, queries: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query = functional.linear(queries, weights[0], biases[0]).unflatten(-1, (self._heads, -1)).transpose(-2, -3)
        key, value = (
            functional.linear(given, weight, bias).unflatten(-1, (self._heads, -1)).transpose(-2, -3)
            for weight, bias in zip(weights[1:], biases[1:], strict=True)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        attention = scores.softmax(-1)
        return self.out_proj((attention @ value).transpose(-2, -3).flatten(-2)), attention


class _Projector(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.net = nn.Linear(shape.queries * shape.features, shape.projected)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.net(pooled)


class _TemporalEncoder(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.time_pos_embed = nn.Parameter(torch.zeros(1, shape.places, shape.hidden))
        self.encoder = _Transformer(shape)

    def forward(self, fused: Tensor) -> Tensor:
        return self.encoder(fused + self.time_pos_embed[:, : fused.shape[1]])


class _Transformer(nn.Module):  # type: ignore[misc]
    """Blocks of the package x-transformers with scaled norms, rotary places and scaled residuals."""

    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(shape.depth):
            for inner in (_SelfAttention(shape), _FeedForward(shape)):
                norm = nn.ModuleList([_ScaleNorm(shape)])
                self.layers.append(nn.ModuleList([norm, inner, _ScaledResidual(shape.hidden)]))
        self.rotary_pos_emb = _RotaryPlaces(shape)
        self.final_norm = _ScaleNorm(shape)

    def forward(self, x: Tensor) -> Tensor:
        turns = self.rotary_pos_emb(x.shape[1])
        for place, (norm, inner, residual) in enumerate(self.layers):
            found = inner(norm[0](x)) if place % 2 else inner(norm[0](x), turns)
            x = residual(found, x)
        return self.final_norm(x)


class _ScaleNorm(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))
        self._scale = shape.hidden**0.5
        self._offset = 1.0 if shape.unit_offset else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1) * (self._scale * (self.g + self._offset))


class _ScaledResidual(nn.Module):  # type: ignore[misc]
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.residual_scale = nn.Parameter(torch.ones(hidden))

    def forward(self, found: Tensor, x: Tensor) -> Tensor:
        return found + x * self.residual_scale


class _RotaryPlaces(nn.Module):  # type: ignore[misc]
    """Cosines and sines of each place, (t, rotated)."""

    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary_frequencies(shape.hidden // shape.heads))
        self._interleaved = shape.rotary == "interleaved"

    def forward(self, places: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(places, device=self.inv_freq.device, dtype=torch.float32)[:, None] * self.inv_freq
        angles = angles.repeat_interleave(2, -1) if self._interleaved else torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


class _SelfAttention(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "to_out"):
            setattr(self, name, nn.Linear(shape.hidden, shape.hidden, bias=False))
        self._heads = shape.heads
        self._interleaved = shape.rotary == "interleaved"

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        query, key = (_rotated(one, turns, interleaved=self._interleaved) for one in (query, key))
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.to_out((attention @ value).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        inner = shape.hidden * shape.multiple
        widen = nn.Sequential(nn.Linear(shape.hidden, inner), nn.GELU())
        self.ff = nn.Sequential(widen, nn.Identity(), nn.Linear(inner, shape.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class _Heads(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: FilmEncoderShape) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(shape.subjects, shape.hidden, shape.parcels))
        self.bias_param = nn.Parameter(torch.zeros(shape.subjects, shape.parcels))

    def forward(self, trunk: Tensor) -> Tensor:
        return trunk[:, None] @ self.weights + self.bias_param[:, None]


def rotary_frequencies(head: int) -> Tensor:
    """Radians a place by which the pairs of a head's first half turn."""
    rotated = max(head // 2, 32)
    return 1.0 / 10000.0 ** (torch.arange(0, rotated, 2).float() / rotated)


def averaging(frames: int, volumes: int) -> Tensor:
    """Matrix (volumes, frames) that averages as `torch.nn.AdaptiveAvgPool1d` does."""
    made = torch.zeros(volumes, frames)
    for volume in range(volumes):
        first, last = volume * frames // volumes, -(-(volume + 1) * frames // volumes)
        made[volume, first:last] = 1.0 / (last - first)
    return made


def _rotated(x: Tensor, turns: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    cosines, sines = turns
    first, rest = x[..., : cosines.shape[-1]], x[..., cosines.shape[-1] :]
    if interleaved:
        one, other = first.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-other, one], -1).flatten(-2)
    else:
        one, other = first.chunk(2, -1)
        turned = torch.cat([-other, one], -1)
    return torch.cat([first * cosines + turned * sines, rest], -1)
