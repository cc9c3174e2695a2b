"""Export a trained tiny pack to ONNX and seal it (torch, onnx). Import this module inside functions only."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

from engines.tiny import layout
from engines.tiny.config import PARITY, pack_toml
from engines.tiny.data import Sample
from engines.tiny.few_steps import FewSteps
from engines.tiny.stages import Stage, stages
from engines.tiny.train import Trained, embed_all
from rtdecode.decode.runtime.engine import OnnxEngine
from rtdecode.errors import EngineError
from rtdecode.packs.description import PACK_SCHEMA
from rtdecode.packs.sealed import seal
from rtdecode.simulate.world import CATEGORIES

OPSET = 23
HALF_FROM_VALUES = 1024
_TIMED = 30


def seal_pack(trained: Trained, few: FewSteps, sample: Sample, figures: dict[str, Any], target: Path) -> str:
    """Export every stage and write the sealed pack.

    The weights of the networks have been rounded to what the pack stores (half precision for large ones), so that a
    comparison with the exported stages is exact to float32. Each exported stage is compared with its network; the
    largest difference goes into the report.

    Parameters
    ----------
    trained : Trained
    few : FewSteps
    sample : Sample
        Pictures over which the category prototypes are averaged.
    figures : dict
        Report of the training, copied into ``pack.toml``.
    target : Path
        Folder of the pack.

    Returns
    -------
    str
        Identity of the pack.

    Raises
    ------
    EngineError
        A stage differs from its network by more than `PARITY`.
    """
    tokens = embed_all(trained.embedder, sample.pictures)
    names = np.array([scene.category for scene in sample.scenes])
    prototypes = np.stack([tokens.numpy()[names == name].mean(0) for name in CATEGORIES])
    networks = stages(trained, few)

    def write(folder: Path) -> None:
        parity = {}
        for name, stage in networks.items():
            stage.module.to(memory_format=torch.contiguous_format)
            export_stage(stage.module, stage.inputs, list(stage.outputs), folder / f"{name}.onnx")
            parity[name] = difference(stage, folder / f"{name}.onnx")
            if parity[name] > PARITY:
                raise EngineError(f"{name}: expected at most {PARITY:g} off its network, got {parity[name]:.2g}")
        onnx.save(adapter_model(), folder / "adapter.onnx")
        save_file({"prototypes": prototypes.astype(np.float32)}, folder / "prototypes.safetensors")
        (folder / "prototypes.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
        report = {**figures, "parity": parity, "milliseconds": milliseconds(networks, folder)}
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "pack.toml").write_text(pack_toml(networks, report), encoding="utf-8")

    return seal(target, PACK_SCHEMA, write)


def difference(stage: Stage, path: Path) -> float:
    """Largest difference of any output between an exported stage and its network, on the examples."""
    with torch.no_grad():
        expected = stage.module(*stage.inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    engine = OnnxEngine(path, name=path.stem, threads=1)
    given = engine.run({name: value.numpy() for name, value in stage.inputs.items()})
    return max(
        float(np.abs(given[name] - truth.numpy()).max()) for name, truth in zip(stage.outputs, expected, strict=True)
    )


def milliseconds(networks: dict[str, Stage], folder: Path) -> dict[str, float]:
    """Median time of one evaluation of each stage for one picture on one thread."""
    out = {}
    for name, stage in networks.items():
        engine = OnnxEngine(folder / f"{name}.onnx", name=name, threads=1)
        values = {key: value.numpy()[:1] for key, value in stage.inputs.items()}
        times = []
        for _ in range(_TIMED):
            began = time.perf_counter()
            engine.run(values)
            times.append(1e3 * (time.perf_counter() - began))
        out[name] = round(float(np.median(times)), 2)
    return out


def round_to_half(module: nn.Module) -> None:
    """Round large weights to half precision in place, as the pack stores them."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.numel() >= HALF_FROM_VALUES and tensor.dtype == torch.float32:
                tensor.copy_(tensor.half().float())


def adapter_model() -> onnx.ModelProto:
    """ONNX model of the ridge adapter; its weights are inputs, so that loading a participant rebuilds nothing."""
    float32 = TensorProto.FLOAT
    nodes = [
        helper.make_node("Sub", ["beta", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["standard"]),
        helper.make_node("MatMul", ["standard", "weights"], ["product"]),
        helper.make_node("Add", ["product", "intercept"], ["components"]),
        helper.make_node("MatMul", ["components", "basis"], ["shift"]),
        helper.make_node("Add", ["shift", "token_mean"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["tokens"]),
    ]
    shape = numpy_helper.from_array(np.array([-1, layout.TOKENS, layout.CHANNELS], dtype=np.int64), "shape")
    graph = helper.make_graph(
        nodes,
        "adapter",
        [helper.make_tensor_value_info(name, float32, size) for name, size in layout.ADAPTER_INPUTS.items()],
        [
            helper.make_tensor_value_info("components", float32, ["batch", "components"]),
            helper.make_tensor_value_info("tokens", float32, ["batch", layout.TOKENS, layout.CHANNELS]),
        ],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def export_stage(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    """Export one network with a free batch size.

    Parameters
    ----------
    module : Module
    inputs : dict of str to Tensor
        An example of each input, by name and in order; of batch size at least 2.
    outputs : list of str
        Names of the outputs.
    path : Path
        File to write.

    Raises
    ------
    EngineError
        The network fixes the batch size, which the exporter does not tell.
    """
    module.eval()
    for name in ("onnx_ir", "onnxscript"):  # they report every constant they fold
        logging.getLogger(name).setLevel(logging.WARNING)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    fixed = [spec.name for spec in model.graph.input if not spec.type.tensor_type.shape.dim[0].dim_param]
    if fixed:
        raise EngineError(f"{path.name}: expected a free batch size, got a fixed one of {', '.join(fixed)}")
    _store_half(model)
    _forget_source(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _forget_source(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of the code and the folder it ran in."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


def _store_half(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16 behind a Cast, which the runtime folds when it loads the model."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16) if values.dtype == np.float32 and values.size >= HALF_FROM_VALUES else None
        if half is None or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
