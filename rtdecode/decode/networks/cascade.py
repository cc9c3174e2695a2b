"""Stable Cascade (Pernias et al. 2023) as MIRAGE draws with it: diffusers' stages C, B and A, and EfficientNet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

LEVEL_UNIT = 2.0**-32
"""What a noise level is counted in: it crosses between parts as a whole number, which no precision rounds."""
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

STAGE_C = {
    "in_channels": 16,
    "out_channels": 16,
    "timestep_ratio_embedding_dim": 64,
    "patch_size": 1,
    "conditioning_dim": 2048,
    "block_out_channels": [2048, 2048],
    "num_attention_heads": [32, 32],
    "down_num_layers_per_block": [8, 24],
    "up_num_layers_per_block": [24, 8],
    "down_blocks_repeat_mappers": [1, 1],
    "up_blocks_repeat_mappers": [1, 1],
    "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
    "clip_text_in_channels": 1280,
    "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": 768,
    "clip_seq": 4,
    "kernel_size": 3,
    "dropout": [0.1, 0.1],
    "timestep_conditioning_type": ["sca", "crp"],
    "switch_level": [False],
}
"""Sizes of the published stage C."""
STAGE_B = {
    "in_channels": 4,
    "out_channels": 4,
    "timestep_ratio_embedding_dim": 64,
    "patch_size": 2,
    "conditioning_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
    "num_attention_heads": [0, 0, 20, 20],
    "down_num_layers_per_block": [2, 6, 28, 6],
    "up_num_layers_per_block": [6, 28, 6, 2],
    "down_blocks_repeat_mappers": [1, 1, 1, 1],
    "up_blocks_repeat_mappers": [3, 3, 2, 2],
    "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock"]] * 2
    + [["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
    "clip_text_pooled_in_channels": 1280,
    "clip_seq": 4,
    "effnet_in_channels": 16,
    "pixel_mapper_in_channels": 3,
    "kernel_size": 3,
    "dropout": [0.0, 0.0, 0.1, 0.1],
    "timestep_conditioning_type": ["sca"],
}
"""Sizes of the published stage B of 1.5 billion weights."""
STAGE_A = {
    "up_down_scale_factor": 2,
    "levels": 2,
    "bottleneck_blocks": 12,
    "embed_dim": 384,
    "latent_channels": 4,
    "num_vq_embeddings": 8192,
    "scale_factor": 0.43,
}
"""Sizes of the published stage A."""


class _Unet(StableCascadeUNet):  # type: ignore[misc]
    """The network with sines of the noise level in single precision, whatever its weights are in."""

    def get_timestep_ratio_embedding(self, timestep_ratio: Tensor, max_positions: int = 10000) -> Tensor:
        falls = _falls(self.config.timestep_ratio_embedding_dim // 2, max_positions)
        # Products rounded to single one by one, as published, and sines in double: what runs exported networks joins or
        # rounds them otherwise, and it shows at angles of thousands.
        turned = (timestep_ratio.double() * max_positions).float()
        constant = torch.tensor(falls, device=timestep_ratio.device).double()
        angle = (turned.double()[:, None] * constant).float().double()
        return torch.cat([angle.sin(), angle.cos()], 1).to(self.dtype)


def _falls(count: int, most: int) -> list[float]:
    """Frequencies of the sines, from 1 down to 1 / `most`: exponentials to the last bit of single precision.

    Numbers and not tensors: those an exporter works out anew, by an exponential that is a bit off, and at angles of
    thousands the network then gives 1e-4 another answer.
    """
    powers = np.arange(count, dtype=np.float32) * np.float32(-math.log(most) / (count - 1))
    falls: list[float] = np.exp(powers.astype(np.float64)).astype(np.float32).tolist()
    return falls


def _ratio(level: Tensor) -> Tensor:
    return (level.double() * LEVEL_UNIT).float()


class StageC(nn.Module):  # type: ignore[misc]
    """Noise in a latent of 42 px a value, given embeddings of text and image.

    Parameters
    ----------
    config : dict
        As `STAGE_C`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = _Unet(**config)

    def forward(self, x: Tensor, level: Tensor, text: Tensor, pooled: Tensor, image: Tensor) -> Tensor:
        """Predict noise in (b, 16, h, w) at levels (b,), in `LEVEL_UNIT`.

        Text is (b, n, width), pooled (b, 1, width), image (b, 1, width).
        """
        out: Tensor = self.unet(x, _ratio(level), pooled, text, image, return_dict=False)[0]
        return out


class StageB(nn.Module):  # type: ignore[misc]
    """Noise in a latent of 4 px a value, given that of stage C.

    Parameters
    ----------
    config : dict
        As `STAGE_B`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.unet = _Unet(**config)

    def forward(self, x: Tensor, level: Tensor, effnet: Tensor, pooled: Tensor) -> Tensor:
        """Predict noise in (b, 4, h, w) at levels (b,), in `LEVEL_UNIT`, given stage C's (b, 16, ...) latent."""
        out: Tensor = self.unet(x, _ratio(level), pooled, effnet=effnet, return_dict=False)[0]
        return out


class StageA(nn.Module):  # type: ignore[misc]
    """Latents of stage B to pictures, about 0..1.

    Parameters
    ----------
    config : dict
        As `STAGE_A`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vqgan = PaellaVQModel(**config)
        _count_no_batches(self)
        self._scale = float(config["scale_factor"])

    def forward(self, latent: Tensor) -> Tensor:
        """Decode (b, 4, h, w), not quantised."""
        out: Tensor = self.vqgan.decode(latent * self._scale, force_not_quantize=True, return_dict=False)[0]
        return out

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures (b, 3, h, w) in 0..1, not quantised."""
        out: Tensor = self.vqgan.encode(pictures, return_dict=False)[0]
        return out / self._scale


def _count_no_batches(network: nn.Module) -> None:
    """Leave out of the weights how many batches training has seen; what is learned of them stays."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
            module.track_running_stats = False  # else loading asks for the number


class EffnetEncoder(nn.Module):  # type: ignore[misc]
    """Pictures (b, 3, h, w) in 0..1 to stage C's latents (b, channels, h / 32, w / 32).

    Parameters
    ----------
    channels : int
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.backbone = efficientnet_v2_s(weights=None).features
        last = self.backbone[-1][0].out_channels
        self.mapper = nn.Sequential(nn.Conv2d(last, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False))
        _count_no_batches(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode pictures."""
        found: Tensor = self.mapper(self.backbone(self.normalised(pictures)))
        return found

    def normalised(self, pictures: Tensor) -> Tensor:
        """Take ImageNet's mean and deviation off."""
        mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        return ((pictures - mean) / std).to(self.mapper[0].weight.dtype)
