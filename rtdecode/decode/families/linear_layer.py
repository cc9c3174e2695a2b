"""One linear layer of a pack's weights, read without torch where its precision allows it."""

from __future__ import annotations

import importlib.util

import numpy as np
from safetensors import safe_open

from rtdecode.decode.arrays import Float32
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack


def linear_layer(pack: EnginePack, stage: str, layer: str) -> tuple[Float32, Float32]:
    """Read a layer: weights (outputs, inputs) and bias (outputs,).

    Raises
    ------
    KeyError
        The stage has no such layer.
    EngineError
        It is in bfloat16 and there is no torch to read it.
    """
    path = pack.folder / pack.description.stage(stage).file
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    with safe_open(path, framework="numpy") as file:
        if weight not in file.keys():  # noqa: SIM118 - no mapping
            raise KeyError(layer)
        if file.get_slice(weight).get_dtype() != "BF16":
            return file.get_tensor(weight).astype(np.float32), file.get_tensor(bias).astype(np.float32)
    if importlib.util.find_spec("torch") is None:
        raise EngineError(
            f"pack {pack.name}: expected a {stage} in float16 or float32, got bfloat16: rtdecode engines export "
            f"{pack.folder}, or pip install '.[gpu]'"
        )
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(weight).float().numpy(), file.get_tensor(bias).float().numpy()
