"""OpenCLIP's bigG vision tower, whose patch tokens MindEye2 predicts."""

from __future__ import annotations

from dataclasses import dataclass

from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from rtdecode.decode.networks.preprocess import bigg_input


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """Sizes of a vision tower; the defaults are bigG's.

    Attributes
    ----------
    px, patch : int
        Height and width of a picture and of a patch.
    width, layers, heads, hidden, out : int
        Channels, transformer layers, attention heads, channels of the feed-forward and of the pooled embedding.
    """

    px: int = 224
    patch: int = 14
    width: int = 1664
    layers: int = 48
    heads: int = 16
    hidden: int = 8192
    out: int = 1280


class ImageEmbedder(nn.Module):  # type: ignore[misc]
    """Pictures (b, 3, h, w) in 0..1 to patch tokens (b, (px / patch)^2, width), after the last norm.

    That is what open_clip gives since 2.23, and with it the published MindEye2; earlier versions gave the tokens before
    the norm.

    Parameters
    ----------
    shape : TowerShape
    """

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.visual = VisionTransformer(
            image_size=shape.px,
            patch_size=shape.patch,
            width=shape.width,
            layers=shape.layers,
            heads=shape.heads,
            mlp_ratio=shape.hidden / shape.width,
            output_dim=shape.out,
            output_tokens=True,
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Embed pictures."""
        tokens: Tensor = self.visual(bigg_input(pictures, self.shape.px).to(self.visual.conv1.weight.dtype))[1]
        return tokens
