"""Whether an engine computes what torch computes in float32, on inputs that are the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engines.compile.precisions import TENSORS, in_precision
from rtdecode.decode.runtime.backends import torch_place
from rtdecode.decode.runtime.engine import Engine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.torch_engine import TorchEngine
from rtdecode.packs.description import PartPrecision

SEED = 20_231
BATCHES = (1, 3)


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


def compare(part: Part, engine: Engine, **sizes: int) -> list[Parity]:
    """Run a part by torch on the CPU in float32 and by an engine.

    Parameters
    ----------
    part : Part
        In float32 on the CPU.
    engine : Engine
        With the part's inputs and outputs.
    sizes : int
        Of inputs that vary; see `Part.examples`.

    Returns
    -------
    list of Parity
        The worse of several batch sizes, output by output.
    """
    return _compare(part, engine, BATCHES, sizes)


def compare_precision(part: Part, precision: PartPrecision, **sizes: int) -> list[Parity]:
    """Run a part by torch in float32 and in another precision, on a GPU where there is one, batch 1; see `compare`.

    Torch rounds after every operation, as a compiled plan does. ONNX Runtime on the CPU joins operations and computes
    them in float32, so that an overflow between them does not show.
    """
    made = replace(part, module=in_precision(part.module, precision))
    engine = TorchEngine(made, device=torch_place()[0], dtype=TENSORS[precision], graph=False)
    return _compare(part, engine, BATCHES[:1], sizes)


def worse(some: list[Parity], others: list[Parity]) -> list[Parity]:
    """Return the larger differences of two comparisons of a part; one that is none is the largest."""
    known = {one.output: one for one in some}
    return [max(one, known.get(one.output, one), key=lambda each: _size(each.difference)) for one in others]


def _size(difference: float) -> float:
    return float("inf") if np.isnan(difference) else difference


def _compare(part: Part, engine: Engine, batches: Sequence[int], sizes: Mapping[str, int]) -> list[Parity]:
    reference = TorchEngine(part, device="cpu")
    worst = dict.fromkeys(part.outputs, 0.0)
    for batch in batches:
        values = {name: value.numpy() for name, value in part.examples(SEED, batch=batch, **sizes).items()}
        expected, found = reference.run(values), engine.run(values)
        for name in part.outputs:
            scale = float(np.abs(expected[name]).max()) or 1.0
            difference = float(np.abs(found[name].astype(np.float64) - expected[name]).max()) / scale
            worst[name] = max(worst[name], difference, key=_size)
    return [Parity(part=part.name, output=name, difference=value) for name, value in worst.items()]


def agrees(found: list[Parity], tolerance: float) -> bool:
    """Whether every output is a number within `tolerance`."""
    return all(one.difference <= tolerance for one in found)
