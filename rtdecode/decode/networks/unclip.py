"""The unCLIP and refinement networks of MindEye2 (SDXL): diffusers' UNet and autoencoder, and their conditioning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

UNCLIP_SIZES = (768, 768, 0, 0)
"""Original height and width and the crop's top and left that the unCLIP is told."""
REFINER_SIZES = (768, 768, 0, 0, 1024, 1024)
"""The same of the refinement, and its target height and width."""
SDXL_SCALE = 0.13025
SD_SCALE = 0.18215
"""What the latents of the two autoencoders are multiplied with."""
_FEATURES = 256
_MAX_PERIOD = 10_000.0
_ROUNDED_UP = [12, 106]


def size_features(numbers: Sequence[float]) -> Tensor:
    """Cosines and sines of picture sizes and places: shape (256 * len(numbers),), float32.

    The unCLIP is given original height and width and the crop's top and left, (768, 768, 0, 0); the refinement the
    target height and width too. At 768 the last bit of a frequency shows, and exponentials in float32 differ between
    machines: these are rounded from float64, but for two that the published ones have one step higher.
    """
    half = _FEATURES // 2
    exponent = -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half
    frequency = exponent.double().exp().float()
    frequency[_ROUNDED_UP] = torch.nextafter(frequency[_ROUNDED_UP], torch.ones(()))
    angle = torch.tensor(numbers, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1).flatten()


def unclip_config(
    *,
    channels: Sequence[int] = (320, 640, 1280),
    depth: Sequence[int] = (1, 2, 10),
    head_channels: int = 64,
    context: int = 1664,
    vector: int = 1024,
    side: int = 96,
) -> dict[str, Any]:
    """Describe a UNet of SDXL's kind for diffusers; the defaults are the published unCLIP.

    Parameters
    ----------
    channels, depth : sequence of int
        Channels and transformer layers of each resolution; the first resolution has no transformer.
    head_channels : int
        Channels of an attention head.
    context, vector : int
        Channels of the tokens attended to, and length of the vector that is added to the time embedding.
    side : int
        Height and width of the latent.
    """
    return {
        "sample_size": side,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (len(channels) - 1),
        "up_block_types": ["CrossAttnUpBlock2D"] * (len(channels) - 1) + ["UpBlock2D"],
        "block_out_channels": list(channels),
        "layers_per_block": 2,
        "transformer_layers_per_block": list(depth),
        "attention_head_dim": [width // head_channels for width in channels],
        "cross_attention_dim": context,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": vector,
    }


def autoencoder_config(channels: Sequence[int] = (128, 256, 512, 512), scaling: float = SDXL_SCALE) -> dict[str, Any]:
    """Describe an autoencoder of Stable Diffusion's kind for diffusers; the defaults are SDXL's."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": list(channels),
        "layers_per_block": 2,
        "scaling_factor": scaling,
    }


class Denoiser(nn.Module):  # type: ignore[misc]
    """Noise in a latent (b, 4, h, w) scaled to unit variance.

    Parameters
    ----------
    config : dict
        As `unclip_config` gives.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**config)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, vector: Tensor) -> Tensor:
        """Predict noise at timesteps `t` (b,) given tokens (b, n, context) and a vector (b, length)."""
        out: Tensor = self.unet(x, t, tokens, class_labels=vector, return_dict=False)[0]
        return out


class Autoencoder(nn.Module):  # type: ignore[misc]
    """Pictures in -1..1 to scaled latents and back.

    Parameters
    ----------
    config : dict
        As `autoencoder_config` gives.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vae = AutoencoderKL(**config)
        self.scale = float(config["scaling_factor"])

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode pictures to scaled latents: a sample with the given noise, or the mode without."""
        posterior = self.vae.encode(pictures).latent_dist
        latent: Tensor = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent * self.scale

    def forward(self, latent: Tensor) -> Tensor:
        """Decode scaled latents."""
        out: Tensor = self.vae.decode(latent / self.scale, return_dict=False)[0]
        return out
