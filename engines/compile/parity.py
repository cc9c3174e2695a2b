"""Whether an engine computes what torch computes in float32, on inputs that are the same everywhere."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engines.compile.precisions import TENSORS
from rtdecode.decode.runtime.backends import torch_place
from rtdecode.decode.runtime.engine import Arrays, Engine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.torch_engine import TorchEngine
from rtdecode.packs.description import PartPrecision

SEED = 20_231
BATCHES = (1, 3)
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Largest difference of an output over its largest value.

    Attributes
    ----------
    part, output : str
    difference : float
        nan where the engine gives a number that is none.
    """

    part: str
    output: str
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What torch makes of a part's examples on the CPU in float32.

    Attributes
    ----------
    part : str
    given, expected : list of dict of str to ndarray
        Inputs and outputs, batch by batch.
    """

    part: str
    given: list[Arrays]
    expected: list[Arrays]


def reference(part: Part, **sizes: int) -> Reference:
    """Run a part, which is in float32 on the CPU, by torch.

    Parameters
    ----------
    part : Part
    sizes : int
        Of inputs that vary; see `Part.examples`.
    """
    engine = TorchEngine(part, device="cpu")
    drawn = [part.examples(SEED, batch=batch, **sizes) for batch in BATCHES]
    given = [{name: value.numpy() for name, value in values.items()} for values in drawn]
    return Reference(part=part.name, given=given, expected=[engine.run(values) for values in given])


def compare(right: Reference, engine: Engine) -> list[Parity]:
    """Run an engine on what torch was run on; the worse of several batch sizes, output by output."""
    return _compare(right, engine, len(BATCHES))


def compare_precision(right: Reference, part: Part, precision: PartPrecision) -> list[Parity]:
    """Run a part that is in another precision by torch, on a GPU where there is one, batch 1; see `compare`.

    Torch rounds after every operation, as a compiled plan does. ONNX Runtime on the CPU joins operations and computes
    them in float32, so that an overflow between them does not show.
    """
    device = torch_place()[0]
    engine = TorchEngine(part, device=device, dtype=TENSORS[precision], graph=False)
    with _SumsInFloat32() if device == "cpu" else nullcontext():
        return _compare(right, engine, 1)


class _SumsInFloat32(TorchDispatchMode):  # type: ignore[misc]
    """Products of half-precision arrays on the CPU: summed in float32 and rounded, as a GPU does; and far quicker."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        halves = {one.dtype for one in args if isinstance(one, Tensor)} & {torch.float16, torch.bfloat16}
        if function not in _PRODUCTS or not halves:
            return function(*args, **(kwargs or {}))
        wide = [one.float() if isinstance(one, Tensor) else one for one in args]
        return function(*wide, **(kwargs or {})).to(halves.pop())


def worse(some: list[Parity], others: list[Parity]) -> list[Parity]:
    """Return the larger differences of two comparisons of a part; one that is none is the largest."""
    known = {one.output: one for one in some}
    return [max(one, known.get(one.output, one), key=lambda each: _size(each.difference)) for one in others]


def _size(difference: float) -> float:
    return float("inf") if np.isnan(difference) else difference


def _compare(right: Reference, engine: Engine, batches: int) -> list[Parity]:
    worst = dict.fromkeys(right.expected[0], 0.0)
    for given, expected in list(zip(right.given, right.expected, strict=True))[:batches]:
        found = engine.run(given)
        for name, values in expected.items():
            scale = float(np.abs(values).max()) or 1.0
            difference = float(np.abs(found[name].astype(np.float64) - values).max()) / scale
            worst[name] = max(worst[name], difference, key=_size)
    return [Parity(part=right.part, output=name, difference=value) for name, value in worst.items()]


def agrees(found: list[Parity], tolerance: float) -> bool:
    """Whether every output is a number within `tolerance`."""
    return all(one.difference <= tolerance for one in found)
