"""SDXL's two text encoders as sgm runs them: the caption's part in the refinement."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

LENGTH = 77
CLIP_L_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": LENGTH,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
BIGG_CONFIG: dict[str, Any] = {"width": 1280, "heads": 20, "layers": 32, "output_dim": 1280, "vocab_size": 49408}


class PromptEncoder(nn.Module):  # type: ignore[misc]
    """Word numbers to the tokens and the pooled vector that SDXL is conditioned on.

    Parameters
    ----------
    clip_l, bigg : dict
        Sizes, as `CLIP_L_CONFIG` and `BIGG_CONFIG`.
    """

    def __init__(self, clip_l: dict[str, Any], bigg: dict[str, Any]) -> None:
        super().__init__()
        text = CLIPTextModel(CLIPTextConfig(**clip_l))
        # Transformers 4 keeps the tower in an attribute, 5 is the tower: the names below it are the same.
        self.clip_l = getattr(text, "text_model", text)
        self.bigg = TextTransformer(context_length=clip_l["max_position_embeddings"], **bigg)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Encode word numbers (b, length), padded with 0 as open_clip does.

        Returns
        -------
        tokens : Tensor of shape (b, length, 768 + 1280)
            The states before the last layer of each encoder.
        pooled : Tensor of shape (b, 1280)
        """
        end = words.amax(1, keepdim=True)
        # CLIP-L was trained with the end's number as padding.
        at_end = (words == end).int().cumsum(1) > 0
        first = self.clip_l(torch.where(at_end, end, words), output_hidden_states=True).hidden_states[-2]
        x = self.bigg.token_embedding(words) + self.bigg.positional_embedding[: words.shape[1]]
        for block in self.bigg.transformer.resblocks[:-1]:
            x = block(x, attn_mask=self.bigg.attn_mask)
        last = self.bigg.ln_final(self.bigg.transformer.resblocks[-1](x, attn_mask=self.bigg.attn_mask))
        pooled = last[torch.arange(words.shape[0], device=words.device), words.argmax(1)] @ self.bigg.text_projection
        return torch.cat([first, x], -1), pooled


def word_numbers(prompts: list[str], length: int = LENGTH) -> Tensor:
    """Numbers (b, length) of the words of prompts, cut to fit."""
    numbers: Tensor = SimpleTokenizer(context_length=length)(prompts)
    return numbers
