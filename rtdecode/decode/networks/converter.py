"""From the image tokens of OpenCLIP's bigG to the hidden states of CLIP-L that the caption model reads."""

from __future__ import annotations

from torch import Tensor, nn


class ClipConverter(nn.Module):  # type: ignore[misc]
    """One linear layer over tokens, then one over channels.

    Parameters
    ----------
    tokens, dim : int
        Of the picture's tokens, as published 256 and 1664.
    out_tokens, out_dim : int
        As published 257 and 1024.
    """

    def __init__(self, tokens: int = 256, dim: int = 1664, out_tokens: int = 257, out_dim: int = 1024) -> None:
        super().__init__()
        self.linear1 = nn.Linear(tokens, out_tokens)
        self.linear2 = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Convert (b, tokens, dim) to (b, out_tokens, out_dim)."""
        out: Tensor = self.linear2(self.linear1(tokens.transpose(1, 2)).transpose(1, 2))
        return out
