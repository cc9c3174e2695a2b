"""Low-rank additions to linear layers (Hu et al. 2021; torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LowRank(nn.Module):  # type: ignore[misc]
    """A linear layer that stays as it is, and what is added to it: nothing until it is trained.

    Parameters
    ----------
    base : Linear
    rank : int
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        place = base.weight.device
        self.down = nn.Parameter(torch.zeros(rank, base.in_features, device=place))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=place))

    @property
    def weight(self) -> Tensor:
        """Weights of the layer that stays, of which networks ask the precision."""
        kept: Tensor = self.base.weight
        return kept

    def begin(self, draw: torch.Generator) -> None:
        """Add nothing, in directions that are drawn."""
        with torch.no_grad():
            drawn = torch.randn(self.down.shape, generator=draw) / self.base.in_features**0.5
            self.down.copy_(drawn)
            self.up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        added: Tensor = self.base(x) + (x.to(self.down.dtype) @ self.down.T) @ self.up.T
        return added

    def merged(self) -> Tensor:
        """Weights of one linear layer that does the same, float32."""
        return self.base.weight.detach().float() + self.up.detach() @ self.down.detach()


def add_low_rank(network: nn.Module, rank: int, *, without: Sequence[str] = ()) -> list[LowRank]:
    """Put `LowRank` in the place of every linear layer of a network, but those whose names begin with one of `without`.

    The rank of a layer is at most the smaller of its sizes.
    """
    added = []
    for name, module in list(network.named_modules()):
        for child, layer in list(module.named_children()):
            path = f"{name}.{child}" if name else child
            if isinstance(layer, nn.Linear) and not path.startswith(tuple(without)):
                own = LowRank(layer, min(rank, layer.in_features, layer.out_features))
                setattr(module, child, own)
                added.append(own)
    return added


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a network as it was before `add_low_rank`, with what was added in its weights."""
    state = {}
    for name, value in network.state_dict().items():
        if not name.endswith((".down", ".up")):
            state[name.replace(".base.", ".")] = value
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            state[f"{name}.weight"] = module.merged().to(module.base.weight.dtype)
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
