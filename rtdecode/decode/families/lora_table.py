"""What packs tell of a public few-step LoRA that was fused into the network that draws."""

from __future__ import annotations

from typing import Literal

from rtdecode.packs.description import Count
from rtdecode.typed import Table

LoraKind = Literal["lightning", "hyper-sd", "dmd2", "lcm"]
"""Public families of LoRAs that make Stable Diffusion draw in few steps."""


class LoraTable(Table, frozen=True, kw_only=True):
    """The few-step LoRA that was fused.

    Attributes
    ----------
    file : str
        Name of the public file.
    kind : str
        ``lightning``, ``hyper-sd``, ``dmd2`` or ``lcm``.
    steps : int
        Evaluations a picture that it was made for.
    fused : int
        Layers that it changed.
    """

    file: str
    kind: LoraKind
    steps: Count
    fused: Count
