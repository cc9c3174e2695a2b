"""What the low-level branches of MindEye2 and MindEye1 share: from a coarse map to a blurry picture's latent."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.autoencoders.vae import Decoder
from torch import nn

MAP_CHANNELS = 64
LATENT_CHANNELS = 4
_FEATURES = 512


def upsampler(widths: Sequence[int]) -> nn.Module:
    """Build the decoder of Stable Diffusion's autoencoder, which doubles height and width between its blocks.

    Parameters
    ----------
    widths : sequence of int
        Channels of the blocks, the last block's first.

    Returns
    -------
    Module
        A map (b, 64, h, w) to a latent (b, 4, 4 h, 4 w) for three widths.
    """
    return Decoder(
        in_channels=MAP_CHANNELS,
        out_channels=LATENT_CHANNELS,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
    )


def maps_projector() -> nn.Sequential:
    """Build what maps (b, 64, h, w) to features (b, 512, h, w) that training aligns with a teacher's."""
    return nn.Sequential(
        nn.Conv2d(MAP_CHANNELS, _FEATURES, 1, bias=False),
        nn.GroupNorm(1, _FEATURES),
        nn.ReLU(),
        nn.Conv2d(_FEATURES, _FEATURES, 1, bias=False),
        nn.GroupNorm(1, _FEATURES),
        nn.ReLU(),
        nn.Conv2d(_FEATURES, _FEATURES, 1),
    )
