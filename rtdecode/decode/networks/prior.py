"""The prior network of MindEye2 and MindEye1: from a brain's image tokens to clean image tokens.

A transformer over ``[condition | time | noisy tokens + learned query]`` with multi-query cosine attention, rotary and
relative positions (dalle2-pytorch 1.15.6; Ramesh et al. 2022). Parameter names are those of the published checkpoints,
below ``diffusion_prior.net.``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_BUCKETS = 32
_MAX_DISTANCE = 128
_ROTARY = 32
_COSINE_SCALE = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorShape:
    """Sizes of a prior network.

    Attributes
    ----------
    tokens, dim : int
        Image tokens of a picture and channels of each.
    depth, heads, dim_head : int
        Transformer layers, attention heads and channels of each head.
    timesteps : int
        Noise levels of the diffusion that it is trained for.
    """

    tokens: int = 256
    dim: int = 1664
    depth: int = 6
    heads: int = 32
    dim_head: int = 52
    timesteps: int = 100


class Gain(nn.Module):  # type: ignore[misc]
    """Layer norm with a gain and no bias; `stable` divides by the largest value first.

    The epsilon depends on the dtype, as published: 1e-5 in float32, 1e-3 otherwise. It is computed in float32 in any
    case: squares of what float16 holds need not be numbers there.
    """

    def __init__(self, dim: int, *, stable: bool = False) -> None:
        super().__init__()
        self.stable = stable
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        eps = 1e-5 if x.dtype == torch.float32 else 1e-3
        wide = x.float()
        if self.stable:
            wide = wide / wide.amax(-1, keepdim=True).detach()
        # Spelt out as published: torch's own layer norm rounds otherwise, and the final norm magnifies that.
        variance = torch.var(wide, dim=-1, unbiased=False, keepdim=True)
        return ((wide - wide.mean(-1, keepdim=True)) * (variance + eps).rsqrt() * self.g).to(
            torch.result_type(x, self.g)
        )


class SwiGlu(nn.Module):  # type: ignore[misc]
    """First half times SiLU of the second half (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve the last axis."""
        value, gate = x.chunk(2, -1)
        return value * functional.silu(gate)


class Rotary(nn.Module):  # type: ignore[misc]
    """Rotation of the leading channels by position, in interleaved pairs (Su et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (..., n, d); channels beyond the rotated ones are left."""
        n = x.shape[-2]
        angle = torch.arange(n, device=x.device, dtype=torch.float32)[:, None] * self.freqs.float()
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        turned, rest = x.split([2 * len(self.freqs), x.shape[-1] - 2 * len(self.freqs)], -1)
        even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        return torch.cat([turned, rest], -1)


class RelativeBias(nn.Module):  # type: ignore[misc]
    """Attention bias (heads, n, n + 1) by how far a key lies before its query (Raffel et al. 2020).

    Keys are counted with the null key in front, so that the key of token j has place j + 1; keys at or after the
    query share one bucket.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(_BUCKETS, heads)

    def forward(self, n: int) -> Tensor:
        """Bias for n tokens."""
        device = self.relative_attention_bias.weight.device
        back = torch.arange(n, device=device)[:, None] - torch.arange(n + 1, device=device)[None, :]
        back = back.clamp(min=0)
        exact = _BUCKETS // 2
        # Below `exact` the logarithm is not used, and 1 keeps it finite.
        octaves = (back.clamp(min=1).float() / exact).log() / math.log(_MAX_DISTANCE / exact)
        far = (exact + (octaves * (_BUCKETS - exact)).long()).clamp(max=_BUCKETS - 1)
        bias: Tensor = self.relative_attention_bias(torch.where(back < exact, back, far))
        return bias.permute(2, 0, 1)


class Attention(nn.Module):  # type: ignore[misc]
    """Cosine attention of many query heads to one key and value head, with a learned null key and value."""

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        inner = shape.heads * shape.dim_head
        self.heads = shape.heads
        self.norm = Gain(shape.dim)
        self.null_kv = nn.Parameter(torch.randn(2, shape.dim_head))
        self.to_q = nn.Linear(shape.dim, inner, bias=False)
        self.to_kv = nn.Linear(shape.dim, 2 * shape.dim_head, bias=False)
        self.rotary_emb = Rotary(min(_ROTARY, shape.dim_head))
        self.to_out = nn.Sequential(nn.Linear(inner, shape.dim, bias=False), Gain(shape.dim))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend among tokens (b, n, dim) with a bias (heads, n, n + 1)."""
        x = self.norm(x)
        q = self.rotary_emb(self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        k, v = self.to_kv(x).chunk(2, -1)
        null_k, null_v = self.null_kv.to(k.dtype).expand(x.shape[0], 2, -1).unsqueeze(2).unbind(1)
        k = torch.cat([null_k, self.rotary_emb(k)], 1)[:, None]
        v = torch.cat([null_v, v], 1)[:, None]
        q, k = (functional.normalize(part, dim=-1) * math.sqrt(_COSINE_SCALE) for part in (q, k))
        weights = (q @ k.transpose(-1, -2) + bias).float().softmax(-1).to(v.dtype)
        out: Tensor = self.to_out((weights @ v).transpose(1, 2).flatten(-2))
        return out


class Transformer(nn.Module):  # type: ignore[misc]
    """Attention and feed-forward layers with residuals, a stable norm and a projection."""

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        dim = shape.dim
        self.rel_pos_bias = RelativeBias(shape.heads)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(shape),
                    # Places 3 and 4 are a norm and a dropout that the published configuration switches off.
                    nn.Sequential(
                        Gain(dim),
                        nn.Linear(dim, 8 * dim, bias=False),
                        SwiGlu(),
                        nn.Identity(),
                        nn.Identity(),
                        nn.Linear(4 * dim, dim, bias=False),
                    ),
                ]
            )
            for _ in range(shape.depth)
        )
        self.norm = Gain(dim, stable=True)
        self.project_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (b, n, dim)."""
        bias = self.rel_pos_bias(x.shape[1])
        for attention, feed_forward in self.layers:
            x = x + attention(x, bias)
            x = x + feed_forward(x)
        out: Tensor = self.project_out(self.norm(x))
        return out


class TimeEmbedding(nn.Module):  # type: ignore[misc]
    """Sine and cosine of the noise level (b,) at `dim` / 2 frequencies: (b, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Embed noise levels."""
        half = self.dim // 2
        index = torch.arange(half, device=t.device, dtype=torch.float32)
        angle = t.float()[:, None] * torch.exp(index * (-math.log(10000.0) / (half - 1)))
        return torch.cat([angle.sin(), angle.cos()], -1)


class TimeMlp(nn.Module):  # type: ignore[misc]
    """Three linear layers with SiLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU()),
            nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.SiLU()),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform (b, dim) float32, whatever the precision of the weights."""
        out: Tensor = self.net(x.to(self.net[2].weight.dtype))
        return out


class PriorNetwork(nn.Module):  # type: ignore[misc]
    """Predicts clean image tokens from noisy ones and the brain's tokens.

    Parameters
    ----------
    shape : PriorShape
    """

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        self.shape = shape
        scale = shape.dim**-0.5
        self.learned_query = nn.Parameter(torch.randn(shape.tokens, shape.dim) * scale)
        self.null_brain_embeds = nn.Parameter(torch.randn(shape.tokens, shape.dim))
        self.null_image_embed = nn.Parameter(torch.randn(shape.tokens, shape.dim))
        self.to_time_embeds = nn.Sequential(nn.Sequential(TimeEmbedding(shape.dim), TimeMlp(shape.dim)))
        self.causal_transformer = Transformer(shape)

    def sequence(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        *,
        keep_condition: Tensor | None = None,
        keep_image: Tensor | None = None,
    ) -> Tensor:
        """Tokens (b, 2 tokens + 1, dim) that the transformer sees; parameters as in `forward`."""
        if keep_condition is not None:
            condition = torch.where(keep_condition[:, None, None], condition, self.null_brain_embeds.to(condition))
        if keep_image is not None:
            x = torch.where(keep_image[:, None, None], x, self.null_image_embed.to(x))
        time = self.to_time_embeds(t)[:, None]
        return torch.cat([condition, time, x + self.learned_query], 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        *,
        keep_condition: Tensor | None = None,
        keep_image: Tensor | None = None,
    ) -> Tensor:
        """Predict clean tokens.

        Parameters
        ----------
        x : Tensor of shape (b, tokens, dim)
            Noisy image tokens.
        t : Tensor of shape (b,)
            Noise levels, from 0 (least) to `timesteps` - 1.
        condition : Tensor of shape (b, tokens, dim)
            Tokens of the brain.
        keep_condition, keep_image : Tensor of shape (b,), bool, optional
            Where False, the learned null takes the place of the condition or of the noisy tokens (training drops
            them, and guidance compares with them).

        Returns
        -------
        Tensor of shape (b, tokens, dim)
        """
        tokens = self.sequence(x, t, condition, keep_condition=keep_condition, keep_image=keep_image)
        return self.causal_transformer(tokens)[:, -self.shape.tokens :]

    def null(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction with neither condition nor noisy tokens."""
        nothing = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self(x, t, condition, keep_condition=nothing, keep_image=nothing)

    def guided(self, x: Tensor, t: Tensor, condition: Tensor, *, cond_scale: float) -> Tensor:
        """Prediction moved away from `null` by `cond_scale`; 1 is the plain prediction (Ho & Salimans 2022)."""
        prediction: Tensor = self(x, t, condition)
        if cond_scale == 1:
            return prediction
        null = self.null(x, t, condition)
        return null + (prediction - null) * cond_scale
