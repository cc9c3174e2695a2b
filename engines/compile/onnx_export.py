"""Stages of a pack as ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from engines.compile.precisions import TENSORS
from rtdecode.decode.networks.build import empty, load
from rtdecode.decode.runtime.parts import Part, parts
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PartPrecision, Shape

OPSET = 23
"""The first with group normalisation and attention as operations of their own."""
_LARGE_BYTES = 1 << 30
_MOST = 8
"""Of a batch while it is traced; the file takes more. Networks ask whether an array has 2^31 elements, and a batch of
any size that pictures of 768 px are drawn in would have."""


def parts_of(pack: EnginePack) -> Iterator[tuple[str, Part]]:
    """Yield the parts of every stage that has weights of a network, without the weights; see `loaded`.

    Yields
    ------
    stage : str
    part : Part
    """
    for stage, spec in pack.description.stages.items():
        if not spec.network:
            continue
        for part in parts(stage, spec, empty(spec.network, dict(spec.sizes))):
            yield stage, part


def loaded(pack: EnginePack, stage: str, name: str) -> Part:
    """Load a part of a stage with its weights, in float32."""
    network = load(pack, stage, device="cpu", dtype=torch.float32)
    return next(part for part in parts(stage, pack.description.stage(stage), network) if part.name == name)


def export_part(part: Part, path: Path, *, precision: PartPrecision = "float32") -> None:
    """Write one part as ONNX, its weights beside it in ``<file>.data`` where they are large.

    Parameters
    ----------
    part : Part
        In the precision; see `in_precision`.
    path : Path
        File to write.
    precision : {"float32", "mixed", "float16", "bfloat16"}
        What the part takes and gives depends on it.

    Raises
    ------
    EngineError
        A weight is not a number, or is none in `precision`; it is named.
    """
    for name in ("onnx_ir", "onnxscript"):  # they report every constant they fold
        logging.getLogger(name).setLevel(logging.WARNING)
    module = part.module
    for key, weight in module.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise EngineError(
                f"{part.name}: {key} holds NaN or inf in {precision}: export in float32 or bfloat16, or, where it does "
                "so in the pack, import another checkpoint"
            )
    dtype = TENSORS[precision]
    given = [v.to(dtype) if v.is_floating_point() else v for v in part.examples(0).values()]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            module,
            tuple(given),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=(_dynamic(part.inputs),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    _forget_source(program.model)
    program.save(path, external_data=size > _LARGE_BYTES)


def _dynamic(inputs: Mapping[str, Shape]) -> tuple[dict[int, torch.export.Dim], ...]:
    names = {size for shape in inputs.values() for size in shape if isinstance(size, str)}
    sizes = {name: torch.export.Dim(name, min=1, max=_MOST if name == "batch" else 1 << 20) for name in names}
    return tuple(
        {axis: sizes[size] for axis, size in enumerate(shape) if isinstance(size, str)} for shape in inputs.values()
    )


def _forget_source(model: onnx_ir.Model) -> None:
    """Take out what the exporter notes of the code and the folder it ran in."""
    graph = model.graph
    values = [value for node in graph.all_nodes() for value in node.outputs]
    parts: list[Any] = [model, graph, *graph.all_nodes(), *graph.inputs, *graph.initializers.values(), *values]
    for part in parts:
        part.metadata_props.clear()
