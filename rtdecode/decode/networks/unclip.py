"""The unCLIP and refinement networks of MindEye2 (SDXL) and what they are conditioned on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FEATURES = 256
_MAX_PERIOD = 10_000.0


def size_features(numbers: Sequence[float]) -> Tensor:
    """Cosines and sines of picture sizes and places: shape (256 * len(numbers),), float32.

    The unCLIP is given original height and width and the crop's top and left, (768, 768, 0, 0); the refinement the
    target height and width too. Torch computes them, because at 768 the last bit of its exponential shows.
    """
    half = _FEATURES // 2
    frequency = torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    angle = torch.tensor(numbers, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1).flatten()
