"""GIT (Wang et al. 2022) as MindEye2 uses it: a caption from CLIP-L's hidden states instead of from a picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
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
