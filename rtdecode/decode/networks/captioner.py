"""GIT (Wang et al. 2022) as MindEye2 uses it: a caption from CLIP-L's hidden states instead of from a picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GitConfig, GitForCausalLM


class _Features(nn.Module):  # type: ignore[misc]
    """Stands where GIT's image encoder stood: what it is given are the hidden states already."""

    def forward(self, pixel_values: Tensor, **_: Any) -> SimpleNamespace:
        """Return the features (b, 1, n, d) as the encoder would."""
        return SimpleNamespace(last_hidden_state=pixel_values.squeeze(1))


def build_captioner(config: dict[str, Any]) -> GitForCausalLM:
    """Build GIT without its image encoder.

    Parameters
    ----------
    config : dict
        Content of the published ``config.json``.
    """
    # The encoder is built without layers and then replaced: it would be most of the weights.
    empty = {**config, "vision_config": {**config["vision_config"], "num_hidden_layers": 0}}
    model = GitForCausalLM(GitConfig(**empty))
    model.git.image_encoder = _Features()
    return model.eval()


class CaptionContext(nn.Module):  # type: ignore[misc]
    """What every word attends to of a picture: computed once, as image tokens do not look at words.

    Parameters
    ----------
    model : GitForCausalLM
    """

    def __init__(self, model: GitForCausalLM) -> None:
        super().__init__()
        self.projection = model.git.visual_projection
        self.layers = model.git.encoder.layer

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, layers, heads, n, channels of a head) of features (b, n, channels)."""
        x = self.projection(features)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            own = layer.attention.self
            keys.append(_heads(own.key(x), own))
            values.append(_heads(own.value(x), own))
            if i + 1 < len(self.layers):
                found = functional.scaled_dot_product_attention(_heads(own.query(x), own), keys[-1], values[-1])
                x = _completed(layer, found, x)
        return torch.stack(keys, 1), torch.stack(values, 1)


class CaptionStep(nn.Module):  # type: ignore[misc]
    """Scores of the word that comes after one; what was said before is remembered as keys and values.

    Parameters
    ----------
    model : GitForCausalLM
    """

    def __init__(self, model: GitForCausalLM) -> None:
        super().__init__()
        self.embeddings = model.git.embeddings
        self.layers = model.git.encoder.layer
        self.output = model.output

    def forward(
        self, word: Tensor, place: Tensor, keys: Tensor, values: Tensor, said_keys: Tensor, said_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score all words.

        Parameters
        ----------
        word, place : Tensor of shape (b,), int64
            The word said last, and how many were said before it.
        keys, values : Tensor
            Of `CaptionContext`.
        said_keys, said_values : Tensor of shape (b, layers, heads, longest, channels of a head)
            Of the words before; what stands at `place` and behind it does not matter.

        Returns
        -------
        Tensor of shape (b, vocabulary)
        Tensor, Tensor
            `said_keys` and `said_values` with those of this word.
        """
        table = self.embeddings
        x = table.LayerNorm(table.word_embeddings(word) + table.position_embeddings(place))[:, None]
        at = torch.arange(said_keys.shape[3], device=word.device)[None, None, :, None]
        here, known = at == place[:, None, None, None], at <= place[:, None, None, None]
        seen = torch.cat([torch.ones_like(keys[:, 0, :1, :, :1], dtype=torch.bool), known], 2)[..., 0][:, :, None]
        new_keys, new_values = [], []
        for i, layer in enumerate(self.layers):
            own = layer.attention.self
            new_keys.append(torch.where(here, _heads(own.key(x), own), said_keys[:, i]))
            new_values.append(torch.where(here, _heads(own.value(x), own), said_values[:, i]))
            found = functional.scaled_dot_product_attention(
                _heads(own.query(x), own),
                torch.cat([keys[:, i], new_keys[-1]], 2),
                torch.cat([values[:, i], new_values[-1]], 2),
                attn_mask=seen,
            )
            x = _completed(layer, found, x)
        return self.output(x[:, 0]), torch.stack(new_keys, 1), torch.stack(new_values, 1)


def _heads(x: Tensor, attention: nn.Module) -> Tensor:
    return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def _completed(layer: nn.Module, found: Tensor, x: Tensor) -> Tensor:
    """Return what a layer makes of its input and of what its heads (b, heads, n, channels) found."""
    out: Tensor = layer.feed_forward_chunk(layer.attention.output(found.transpose(1, 2).flatten(2), x))
    return out
