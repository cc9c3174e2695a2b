"""The networks that draw MindEye1's pictures: Stable Diffusion 1's UNet guided by image tokens, its autoencoder, CLIP.

Versatile Diffusion with a text ratio of 0 is its image UNet alone, which is of that layout.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from rtdecode.decode.networks.preprocess import CLIP_MEAN, CLIP_STD, clip_input
from rtdecode.decode.networks.unclip import Autoencoder

IMAGE_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
"""Sizes of the published image UNet; `attention_head_dim` is the number of heads."""
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Sizes of CLIP-L's vision tower."""


class ImageDenoiser(nn.Module):  # type: ignore[misc]
    """Noise in a latent (b, 4, h, w), given image tokens.

    Parameters
    ----------
    config : dict
        As `IMAGE_UNET`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**config)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Predict noise at timesteps `t` (b,) given tokens (b, n, context)."""
        out: Tensor = self.unet(x, t, tokens, return_dict=False)[0]
        return out


class LatentEncoder(nn.Module):  # type: ignore[misc]
    """Blurry pictures (b, 3, h, w) in 0..1 to the posterior of their latents, as MindEye1 encodes them.

    The published code takes off CLIP's mean and deviation where the autoencoder was trained on -1..1; it is kept.

    Parameters
    ----------
    coder : Autoencoder
    """

    def __init__(self, coder: Autoencoder) -> None:
        super().__init__()
        self.vae = coder.vae

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (b, 4, h, w), not scaled."""
        mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        posterior = self.vae.encode((pictures - mean) / std).latent_dist
        return posterior.mean, posterior.std


class ClipImage(nn.Module):  # type: ignore[misc]
    """CLIP's vision tower: what decoders of CLIP's tokens are trained on, and how candidates are picked.

    Parameters
    ----------
    config : dict
        As `CLIP_L`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
        self.px = int(config["image_size"])

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed pictures (b, 3, h, w) in 0..1.

        Returns
        -------
        hidden : Tensor of shape (b, n, width)
            Last hidden state, before the last norm.
        tokens : Tensor of shape (b, n, dim)
            Normed and projected, over the length of the first.
        pooled : Tensor of shape (b, dim)
            The first of the projected ones, not normalised.
        """
        given = clip_input(pictures, self.px).to(self.clip.visual_projection.weight.dtype)
        return self.of_hidden(self.clip.vision_model(given).last_hidden_state)

    def of_hidden(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Go on from the last hidden state; see `forward`."""
        projected = self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden))
        pooled = projected[:, 0]
        return hidden, projected / pooled.norm(dim=-1)[:, None, None], pooled
