"""The precision that a part is exported in, and which is the next better one."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.packs.description import PartPrecision

PRECISIONS: tuple[PartPrecision, ...] = typing.get_args(PartPrecision)
"""From the finest to the coarsest."""
TOLERANCES: dict[PartPrecision, float] = {"float32": 1e-4, "mixed": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference from torch in float32, over the largest value, that a pack asks by its parts' precision."""
_PICTURES = 1e-3
"""The least asked of an autoencoder, whose norms sum millions of values: ONNX Runtime's do so one by one, which costs
5e-5 a norm at 768 px. A step of 8 bits is 8e-3."""
LEAST: dict[str, PartPrecision] = {"autoencoder": "float32", "prior": "mixed"}
"""Kinds of networks that bear no less: the one overflows in float16, the other adds small numbers to large ones."""
TENSORS = {"float32": torch.float32, "mixed": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What a part takes and gives, by its precision."""


def tolerance_of(kind: str, precision: PartPrecision) -> float:
    """Largest difference from torch in float32 that is asked of a part of a kind of network."""
    return max(TOLERANCES[precision], _PICTURES) if kind == "autoencoder" else TOLERANCES[precision]


def borne(kind: str, precision: PartPrecision) -> Iterator[PartPrecision]:
    """Yield the precision asked of a kind of network, or the least that it bears, then each better one."""
    coarsest = min(PRECISIONS.index(precision), PRECISIONS.index(LEAST.get(kind, precision)))
    yield from reversed(PRECISIONS[: coarsest + 1])


def in_precision(module: nn.Module, precision: PartPrecision) -> nn.Module:
    """Convert a module to a precision, tensor by tensor, and return it.

    Mixed: products of linear layers and convolutions in float16, and all between them, norms and sums among it, in
    float32.
    """
    if precision == "float32":
        return module
    if precision != "mixed":
        return module.to(TENSORS[precision])
    for layer in module.modules():
        if type(layer) in (nn.Linear, nn.Conv2d):  # not the kind within torch's attention, whose weights it reads
            layer.half()
            layer.register_forward_pre_hook(_to_half)
            layer.register_forward_hook(_to_single)
    return module


def _to_half(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.half() for value in given)


def _to_single(_: nn.Module, __: tuple[Any, ...], found: Tensor) -> Tensor:
    return found.float()
