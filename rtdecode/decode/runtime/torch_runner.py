"""The stages of a pack run by torch on one device, each in the precision that it bears."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.decode.networks.build import load
from rtdecode.decode.runtime.host_weights import HostWeights
from rtdecode.decode.runtime.parts import FURTHER, parts
from rtdecode.decode.runtime.residency import Residency
from rtdecode.decode.runtime.runner import Compute, Runner, tensor_runner
from rtdecode.decode.runtime.torch_engine import Graph, TorchEngine
from rtdecode.packs import EnginePack

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FULL = ("autoencoder", "coder", "prior")
"""Kinds of networks that are not in half precision as a whole."""


def torch_runner(
    pack: EnginePack,
    *,
    device: str,
    precision: str,
    internal: Collection[str] = (),
    residency: Residency | None = None,
) -> Runner:
    """Run the parts of a pack by torch; parameters as of `open_stage` and `tensor_runner`."""
    opened: dict[str, TorchEngine] = {}
    graphs: list[Graph] = []
    stages = pack.description.stages
    stage_of = {f"{name}{FURTHER[stage.network]}": name for name, stage in stages.items() if stage.network in FURTHER}

    def open_part(name: str) -> Compute:
        if name not in opened:
            stage = stage_of.get(name, name)
            opened.update({engine.name: engine for engine in stage_engines(stage)})
        return opened[name].compute

    def stage_engines(stage: str) -> list[TorchEngine]:
        return open_stage(pack, stage, device=device, precision=precision, residency=residency)

    def whole(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        graph = Graph(
            lambda *given: [function(*given)], name, wanted=residency is None and torch.device(device).type == "cuda"
        )
        graphs.append(graph)
        return lambda *given: graph(*given)[0]

    def fallbacks() -> tuple[str, ...]:
        told = [*(engine.fallback for engine in opened.values()), *(graph.fallback for graph in graphs)]
        return tuple(one for one in told if one)

    runner = tensor_runner(stages.keys() | stage_of.keys(), open_part, device=device, internal=internal)
    return replace(runner, fallbacks=fallbacks, whole=whole)


def open_stage(
    pack: EnginePack, stage: str, *, device: str, precision: str, residency: Residency | None = None
) -> list[TorchEngine]:
    """Load the parts of one stage as a session runs them.

    Parameters
    ----------
    pack : EnginePack
    stage : str
    device : str
        As torch names it.
    precision : {"float32", "float16", "bfloat16"}
        Of the networks. Autoencoders stay in float32 and, in half precision, the prior runs under autocast, both as
        published.
    residency : Residency or None
        What brings the stage to the device when it is used; None: it is loaded there, and stays.
    """
    dtype, kind = DTYPES[precision], pack.description.stage(stage).network
    given = torch.float32 if kind in _FULL else dtype
    network = load(pack, stage, device=device if residency is None else "cpu", dtype=given)
    made = parts(stage, pack.description.stage(stage), network)
    if kind == "prior" and dtype != torch.float32:
        made = [replace(part, module=_Autocast(part.module, dtype)) for part in made]
    if residency is None:
        return [TorchEngine(part, device=device, dtype=given) for part in made]
    weights = HostWeights([part.module for part in made], device)
    residency.add(stage, weights.size, weights.move)
    fetch = partial(residency.use, stage)
    return [TorchEngine(part, device=device, dtype=given, fetch=fetch) for part in made]


class _Autocast(nn.Module):  # type: ignore[misc]
    """A network under autocast, its linear layers converted once and for all: the same values, half the memory."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)

    def forward(self, *values: Tensor) -> Any:
        with torch.autocast(values[0].device.type, self._dtype, cache_enabled=False):
            return self.network(*values)
