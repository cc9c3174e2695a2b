"""Whether an engine computes what torch computes in float32, on inputs that are the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtdecode.decode.runtime.engine import Engine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.torch_engine import TorchEngine

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
    reference = TorchEngine(part, device="cpu")
    worst = dict.fromkeys(part.outputs, 0.0)
    for batch in BATCHES:
        values = {name: value.numpy() for name, value in part.examples(SEED, batch=batch, **sizes).items()}
        expected, found = reference.run(values), engine.run(values)
        for name in part.outputs:
            scale = float(np.abs(expected[name]).max()) or 1.0
            difference = float(np.abs(found[name].astype(np.float64) - expected[name]).max()) / scale
            worst[name] = difference if np.isnan(difference) else max(worst[name], difference)
    return [Parity(part=part.name, output=name, difference=value) for name, value in worst.items()]


def agrees(found: list[Parity], tolerance: float) -> bool:
    """Whether every output is a number within `tolerance`."""
    return all(one.difference <= tolerance for one in found)
