"""In what precision this machine trains the tiny pack (torch). Import this module inside functions only."""

from __future__ import annotations

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names of x86 and ARM instructions that multiply bfloat16."""


def half_precision() -> torch.dtype | None:
    """Return bfloat16 where the CPU has instructions for it, otherwise None: emulated it is slower than float32.

    A torch that cannot tell what its CPU has (no ``torch.cpu.get_capabilities``) trains in float32.
    """
    ask = getattr(torch.cpu, "get_capabilities", None)
    has = ask() if ask is not None else {}
    return torch.bfloat16 if any(has.get(name) for name in _INSTRUCTIONS) else None


def autocast() -> torch.autocast:
    """Compute in `half_precision` where there is one."""
    return torch.autocast("cpu", half_precision(), enabled=half_precision() is not None)
