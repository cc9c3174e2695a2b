"""The unCLIP and refinement networks of MindEye2 (SDXL): diffusers' UNet and autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

SDXL_SCALE = 0.13025
SD_SCALE = 0.18215
"""What the latents of the two autoencoders are multiplied with."""


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


class SmallAutoencoder(nn.Module):  # type: ignore[misc]
    """Scaled latents to pictures in -1..1 by a distilled decoder (TAESDXL).

    Parameters
    ----------
    channels : int
    blocks : sequence of int
        Of each resolution, the coarsest first.
    """

    def __init__(self, channels: int = 64, blocks: Sequence[int] = (3, 3, 3, 1)) -> None:
        super().__init__()
        widths = (channels,) * len(blocks)
        whole = AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_decoder_blocks=tuple(blocks)
        )
        self.decoder = whole.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Decode scaled latents."""
        out: Tensor = self.decoder(latent)
        return out
