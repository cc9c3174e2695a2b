"""GIT (Wang et al. 2022) as MindEye2 uses it: a caption from CLIP-L's hidden states instead of from a picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GitConfig, GitForCausalLM

CAPTION_TOKENS = 20
"""Longest caption, the first token included."""


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


class Captioner:
    """Hidden states to sentences.

    Parameters
    ----------
    model : GitForCausalLM
        From `build_captioner`, with its weights.
    tokenizer : Path
        Folder with the tokenizer's files.
    """

    def __init__(self, model: GitForCausalLM, tokenizer: Path) -> None:
        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)

    def __call__(self, features: Tensor) -> list[str]:
        """Caption features (b, 257, 1024) greedily."""
        weight = self._model.output.weight
        with torch.no_grad():
            words = self._model.generate(
                pixel_values=features[:, None].to(weight.device, weight.dtype),
                max_length=CAPTION_TOKENS,
                do_sample=False,
                num_beams=1,
            )
        return [text.strip() for text in self._tokenizer.batch_decode(words, skip_special_tokens=True)]
