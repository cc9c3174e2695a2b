"""A denoiser whose cross-attention is given keys and values: those of the tokens are computed once per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from rtdecode.decode.networks.image_diffusion import ImageDenoiser
from rtdecode.decode.networks.unclip import Denoiser


class _GivenKeys:
    """Processor of one cross-attention: attends to the keys and values that it was handed."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __call__(self, attention: Attention, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        assert self.keys is not None
        assert self.values is not None
        query = _heads(attention.to_q(hidden_states), attention.heads)
        found = functional.scaled_dot_product_attention(query, self.keys, self.values)
        out: Tensor = attention.to_out[0](found.transpose(1, 2).flatten(2))
        return out


class DenoiserContext(nn.Module):  # type: ignore[misc]
    """Tokens to what a denoiser's cross-attentions make of them: one product for the keys and values of all layers.

    Parameters
    ----------
    denoiser : Denoiser or ImageDenoiser
        Gives the weights of keys and values away: it takes no tokens any more.
    """

    def __init__(self, denoiser: Denoiser | ImageDenoiser) -> None:
        super().__init__()
        layers = cross_attentions(denoiser.unet)
        weights = [project.weight for layer in layers for project in (layer.to_k, layer.to_v)]
        self.shapes = [(layer.heads, layer.inner_dim // layer.heads) for layer in layers for _ in range(2)]
        self.project = nn.utils.skip_init(nn.Linear, weights[0].shape[1], sum(map(len, weights)), bias=False)
        self.project.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        for layer in layers:
            layer.to_k = layer.to_v = None

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Keys and values in turn, each (b, heads, n, channels of a head), of tokens (b, n, context)."""
        made = self.project(tokens).split([heads * channels for heads, channels in self.shapes], -1)
        return tuple(_heads(one, heads) for one, (heads, _) in zip(made, self.shapes, strict=True))


class ContextDenoiser(nn.Module):  # type: ignore[misc]
    """The same network as a `Denoiser`, given what `DenoiserContext` gives instead of tokens; it shares the weights.

    Parameters
    ----------
    denoiser : Denoiser or ImageDenoiser
        A `DenoiserContext` was made of it.
    """

    def __init__(self, denoiser: Denoiser | ImageDenoiser) -> None:
        super().__init__()
        self.unet = denoiser.unet
        self._told = isinstance(denoiser, Denoiser)
        self._given = []
        for layer in cross_attentions(denoiser.unet):
            layer.set_processor(_GivenKeys())
            self._given.append(layer.processor)

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        """Predict noise given the vector of a `Denoiser`, and then keys and values in turn."""
        vector, context = (given[0], given[1:]) if self._told else (None, given)
        for layer, keys, values in zip(self._given, context[::2], context[1::2], strict=True):
            layer.keys, layer.values = keys, values
        out: Tensor = self.unet(x, t, None, class_labels=vector, return_dict=False)[0]
        return out


def cross_attentions(unet: nn.Module) -> Sequence[Attention]:
    """Every cross-attention of a UNet, in the order of its weights."""
    return [
        module for name, module in unet.named_modules() if isinstance(module, Attention) and name.endswith(".attn2")
    ]


def context_names(denoiser: Denoiser | ImageDenoiser) -> list[str]:
    """Names of the tensors of `DenoiserContext`, in order."""
    return [f"{part}{i}" for i in range(len(cross_attentions(denoiser.unet))) for part in ("keys", "values")]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
