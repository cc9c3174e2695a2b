"""MindEye1's networks (Scotti et al. 2023); parameter names are those of the published checkpoints.

Its prior is `PriorNetwork` with 257 tokens of 768 channels and 12 heads of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rtdecode.decode.networks.lowlevel import MAP_CHANNELS, maps_projector, upsampler

_SIDE = 16
_WIDTHS = (64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainShape:
    """Sizes of MindEye1's networks.

    Attributes
    ----------
    voxels, hidden : int
    tokens, dim : int
        CLIP-L's projected hidden states.
    projector : int
        Hidden values of the retrieval projector.
    blocks : int
        Layers between the first and the last.
    skips : bool
        Whether these are residual, as published.
    """

    voxels: int
    hidden: int = 4096
    tokens: int = 257
    dim: int = 768
    projector: int = 2048
    blocks: int = 4
    skips: bool = True


class BrainNetwork(nn.Module):  # type: ignore[misc]
    """Betas (b, voxels), averaged over repeats, to tokens and retrieval tokens (b, tokens, dim).

    Parameters
    ----------
    shape : BrainShape
    """

    def __init__(self, shape: BrainShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, dim, inner = shape.hidden, shape.dim, shape.projector
        self.lin0 = nn.Sequential(nn.Linear(shape.voxels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(0.5))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(0.15))
            for _ in range(shape.blocks)
        )
        self.lin1 = nn.Linear(hidden, shape.tokens * dim)
        self.projector = nn.Sequential(
            nn.LayerNorm(dim),
            nn.GELU(),
            nn.Linear(dim, inner),
            nn.LayerNorm(inner),
            nn.GELU(),
            nn.Linear(inner, inner),
            nn.LayerNorm(inner),
            nn.GELU(),
            nn.Linear(inner, dim),
        )

    def forward(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Decode betas."""
        return self.after_first(self.lin0[0](betas))

    def after_first(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Decode what the first layer made of betas: (b, hidden)."""
        x = self.lin0[1:](values)
        for block in self.mlp:
            x = x + block(x) if self.shape.skips else block(x)
        tokens = self.lin1(x).unflatten(1, (self.shape.tokens, self.shape.dim))
        return tokens, self.projector(tokens)


class LowLevel(nn.Module):  # type: ignore[misc]
    """Betas (b, voxels) to a blurry latent (b, 4, 64, 64) times 0.18215, and features (b, 256, 512).

    Parameters
    ----------
    voxels, hidden : int
    blocks : int
        Residual layers.
    aligned : bool
        Whether the checkpoint has the projector of the features, which only training needs.
    """

    def __init__(self, voxels: int, hidden: int = 4096, *, blocks: int = 4, aligned: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Sequential(
            nn.Linear(voxels, hidden, bias=False), nn.LayerNorm(hidden), nn.SiLU(), nn.Dropout(0.5)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden, bias=False), nn.LayerNorm(hidden), nn.SiLU(), nn.Dropout(0.25))
            for _ in range(blocks)
        )
        self.lin1 = nn.Linear(hidden, MAP_CHANNELS * _SIDE * _SIDE, bias=False)
        self.norm = nn.GroupNorm(1, MAP_CHANNELS)
        self.upsampler = upsampler(_WIDTHS)
        self.maps_projector = maps_projector() if aligned else None

    def forward(self, betas: Tensor) -> tuple[Tensor, Tensor | None]:
        """Decode betas."""
        x = self.lin0(betas)
        for block in self.mlp:
            x = x + block(x)
        coarse = self.norm(self.lin1(x).unflatten(1, (MAP_CHANNELS, _SIDE, _SIDE)))
        if self.maps_projector is None:
            return self.upsampler(coarse), None
        return self.upsampler(coarse), self.maps_projector(coarse).flatten(2).transpose(1, 2)
