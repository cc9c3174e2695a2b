"""Pictures as CLIP sees them: bigG in MindEye2 (kornia's antialiased resize and a shift), CLIP-L elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BIGG_PX = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(pictures: Tensor, px: int) -> Tensor:
    """Resize to a square as kornia 0.7.1 does: bicubic, corners aligned, blurred before it shrinks.

    Parameters
    ----------
    pictures : Tensor of shape (b, c, h, w)
    px : int
        Height and width wanted; a picture that has them is returned as it is.
    """
    height, width = pictures.shape[-2:]
    if (height, width) == (px, px):
        return pictures
    factors = (height / px, width / px)
    if max(factors) > 1:
        for axis, factor in zip((-2, -1), factors, strict=True):
            pictures = _blur(pictures, factor, axis)
    return functional.interpolate(pictures, size=(px, px), mode="bicubic", align_corners=True)


def bigg_input(pictures: Tensor, px: int = BIGG_PX) -> Tensor:
    """Prepare for bigG, as MindEye2 does, pictures (b, 3, h, w) in 0..1.

    The published code halves the range around 1/2 as if the pictures were in -1..1; the decoders are trained on tokens
    of such pictures, so it is kept.
    """
    mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return ((resize(pictures, px) + 1) / 2 - mean) / std


def clip_input(pictures: Tensor, px: int = BIGG_PX) -> Tensor:
    """Prepare for CLIP-L square pictures (b, 3, h, w) in 0..1: bicubic without antialiasing, then CLIP's scale.

    That is what torchvision did to tensors up to 0.16, with which the published decoders were trained and judged.
    """
    mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    if tuple(pictures.shape[-2:]) != (px, px):
        pictures = functional.interpolate(pictures, size=(px, px), mode="bicubic", align_corners=False)
    return (pictures - mean) / std


def _blur(pictures: Tensor, factor: float, axis: int) -> Tensor:
    """Gaussian along one axis with reflected edges; its width follows scikit-image, its support Pillow."""
    sigma = max((factor - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3)) // 2 * 2 + 1
    at = torch.arange(size, device=pictures.device, dtype=pictures.dtype) - size // 2
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = pictures.shape[1]
    pad = (size // 2,) * 2
    if axis == -1:
        padded = functional.pad(pictures, (*pad, 0, 0), mode="reflect")
        return functional.conv2d(padded, kernel.expand(channels, 1, 1, size), groups=channels)
    padded = functional.pad(pictures, (0, 0, *pad), mode="reflect")
    return functional.conv2d(padded, kernel[:, None].expand(channels, 1, size, 1), groups=channels)
