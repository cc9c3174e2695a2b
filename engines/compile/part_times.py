"""How long each part of a pack takes, and on what."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.decode.runtime.plans import exported, load_plan, plan_keys, runnable, sizes_of
from rtdecode.decode.runtime.runner import WHOLE
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PartTable, StageTable

BACKENDS = ("onnx", "torch", "tensorrt")
_WARM_UPS = 2
_VOXELS = 15_000
_SIZES = {"batch": 1, "voxels": _VOXELS, "components": 256, "tokens": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTime:
    """Times of one part in ms, batch 1, inputs and outputs on the host; and why it is slower than it could be."""

    part: str
    median_ms: float
    p99_ms: float
    fallback: str


def time_pack(pack: EnginePack, backend: str, *, threads: int, times: int) -> Iterator[PartTime]:
    """Time every part of a pack.

    Parameters
    ----------
    pack : EnginePack
    backend : {"onnx", "torch", "tensorrt"}
        By torch as a session runs it: on a GPU in half precision and, but for captions, as CUDA graphs.
    threads : int
        CPU threads.
    times : int
        Runs of each part, after two that are not counted.

    Raises
    ------
    EngineError
        The pack has nothing that the backend can run.
    """
    for engine, inputs in _engines(pack, backend, threads):
        values = _values(inputs, sizes_of(pack))
        for _ in range(_WARM_UPS):
            engine.run(values)
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            engine.run(values)
            taken.append(1e3 * (time.perf_counter() - began))
        part = engine.name.rpartition("/")[2]
        yield PartTime(
            part=part,
            median_ms=float(np.median(taken)),
            p99_ms=float(np.quantile(taken, 0.99)),
            fallback=getattr(engine, "fallback", ""),  # torch's only
        )


def _engines(pack: EnginePack, backend: str, threads: int) -> Iterator[tuple[Engine, Mapping[str, Any]]]:
    stages = pack.description.stages
    networks = pack.description.has_networks
    if backend == "onnx":
        files: Mapping[str, PartTable | StageTable] = runnable(pack) if networks else stages
        for name, spec in files.items():
            yield OnnxEngine(pack.folder / spec.file, name=name, threads=threads), spec.inputs
    elif not networks:
        raise EngineError(f"pack {pack.name}: expected stages with weights of networks for {backend}, got ONNX files")
    elif backend == "torch":
        import torch

        from rtdecode.decode.runtime.torch_runner import open_stage

        torch.set_num_threads(threads)
        chosen = choose("torch", pack)
        for stage in stages:
            for engine in open_stage(pack, stage, device=chosen.device, precision=chosen.precision):
                yield engine, engine.part.inputs
    else:
        from rtdecode.decode.runtime.tensorrt import TensorRT

        runtime = TensorRT()
        for name, key in plan_keys(pack, runtime.hardware()).items():
            yield load_plan(pack, name, key, runtime), exported(pack)[name].inputs


def _values(inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    known = {**_SIZES, **sizes}
    found: dict[str, NDArray[Any]] = {}
    for name, shape in inputs.items():
        counted = [size if isinstance(size, int) else known[size] for size in shape]
        if name in WHOLE:
            found[name] = rng.integers(*WHOLE[name], counted)
        else:
            found[name] = rng.standard_normal(counted).astype(np.float32)
    return found
