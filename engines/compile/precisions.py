"""The precision that a part is exported in, and which is the next better one."""

from __future__ import annotations

import copy
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
LEAST: dict[str, PartPrecision] = {"autoencoder": "float32", "prior": "mixed"}
"""Kinds of networks that bear no less: the one overflows in float16, the other adds small numbers to large ones."""
TENSORS = {"float32": torch.float32, "mixed": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What a part takes and gives, by its precision."""


def borne(kind: str, precision: PartPrecision) -> Iterator[PartPrecision]:
    """Yield the precision asked of a kind of network, or the least that it bears, then each better one."""
    coarsest = min(PRECISIONS.index(precision), PRECISIONS.index(LEAST.get(kind, precision)))
    yield from reversed(PRECISIONS[: coarsest + 1])


def in_precision(module: nn.Module, precision: PartPrecision) -> nn.Module:
    """Return a module in a precision; that which is given stays as it is.

    Mixed: products of linear layers and convolutions in float16, and all between them, norms and sums among it, in
    float32.
    """
    if precision == "float32":
        return module
    copied = copy.deepcopy(module)
    if precision != "mixed":
        return copied.to(TENSORS[precision])
    for layer in copied.modules():
        if type(layer) in (nn.Linear, nn.Conv2d):  # not the kind within torch's attention, whose weights it reads
            layer.half()
            layer.register_forward_pre_hook(_to_half)
            layer.register_forward_hook(_to_single)
    return copied


def _to_half(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.half() for value in given)


def _to_single(_: nn.Module, __: tuple[Any, ...], found: Tensor) -> Tensor:
    return found.float()
