"""Exporting a pack to ONNX and compiling plans, each kept only if it computes what torch computes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import torch
from msgspec.structs import replace
from safetensors.numpy import save_file
from safetensors.torch import load_file

from engines.compile.onnx_export import OPSET, export_part, loaded, parts_of
from engines.compile.parity import Parity, Reference, agrees, compare, compare_precision, reference, worse
from engines.compile.precisions import borne, in_precision, tolerance_of
from engines.sealed_copies import exported_files, seal_copy
from rtdecode.decode.runtime.engine import OnnxEngine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.plans import SCHEMA, PlanKey, PlanRuntime, Profile, exported, plan_keys, sizes_of
from rtdecode.errors import EngineError
from rtdecode.memory import give_back_memory
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription, PartPrecision, PartTable

_READS_ATTENTION = (10, 14)
"""Version of TensorRT from which its reader of ONNX files knows the operation `Attention`."""
Report = Callable[[str], None]
_REMEDY = "engines export --tolerance states what a pack is held to"


class PlanBuilder(PlanRuntime, Protocol):
    """The seam to the library that compiles plans."""

    def build(self, onnx: Path, profile: Profile, flags: tuple[str, ...] = ()) -> bytes:
        """Compile a network. Raises EngineError with the library's reasons."""
        ...


def export_pack(
    pack: EnginePack,
    out: Path,
    *,
    precision: PartPrecision,
    tolerance: float | None = None,
    strict: bool = False,
    report: Report,
) -> str:
    """Write a pack with an ONNX file for each part, sealed after each was compared with torch.

    Parameters
    ----------
    pack : EnginePack
        With weights of networks.
    out : Path
        Folder of the new pack.
    precision : {"float32", "mixed", "float16", "bfloat16"}
        Of the parts; one that does not bear it is exported in the next better precision, which ``pack.toml`` tells.
        See `engines.compile.precisions`.
    tolerance : float or None
        Largest difference from torch in float32 over the largest value, kept in ``pack.toml`` and asked of plans too;
        None takes that of a part's precision and kind (`tolerance_of`).
    strict : bool
        Whether a part that differs by more is an error, instead of being exported in the next better precision.
    report : callable
        Is given a line for each part, and for each precision that a part does not hold.

    Returns
    -------
    str
        Identity of the new pack.

    Raises
    ------
    EngineError
        The pack has no networks, or a part differs from torch.
    """
    if not pack.description.has_networks:
        raise EngineError(f"pack {pack.name}: expected stages with weights of networks, got ONNX files already")

    def change(folder: Path) -> PackDescription:
        ridge = pack.description.stages.get("ridge")
        if ridge is not None:  # an input of its part: read by numpy, which has no bfloat16
            weights = load_file(pack.folder / ridge.file)
            save_file({name: value.float().numpy() for name, value in weights.items()}, folder / ridge.file)
        table: dict[str, PartTable] = {}
        for stage, part in parts_of(pack):
            path = folder / f"{part.name}.onnx"
            right = reference(loaded(pack, stage, part.name), **sizes_of(pack))
            kind = pack.description.stage(stage).network
            for borne_one in borne(kind, precision):
                limit = tolerance_of(kind, borne_one) if tolerance is None else tolerance
                problem, found = _try(loaded(pack, stage, part.name), right, path, borne_one, limit)
                if not problem:
                    break
                if strict or borne_one == "float32":
                    raise EngineError(f"{part.name} in {borne_one}: {problem}; nothing was kept. {_REMEDY}")
                report(f"{part.name}: not in {borne_one}, as {problem}")
            table[part.name] = PartTable(
                stage=stage,
                file=path.name,
                precision=borne_one,
                tolerance=limit,
                difference=_measured(found),
                opset=OPSET,
                inputs=part.inputs,
                outputs=list(part.outputs),
            )
            report(f"{part.name}: {borne_one}, {_told(found)}")
        return replace(pack.description, parts=table)

    return seal_copy(pack, out, change, without=exported_files(pack))


def _try(part: Part, right: Reference, path: Path, precision: PartPrecision, limit: float) -> tuple[str, list[Parity]]:
    """Export a part, which is used up, in a precision; tell why it cannot be kept, if it cannot, and how far it is."""
    try:
        found = _in_precision(part, right, precision)
        export_part(part, path, precision=precision)
        part.module.to("meta")  # the file is to be read now, and there may be no room for both
        found = _with_onnx_runtime(found, right, path, precision, threads=torch.get_num_threads())
    except EngineError as error:
        return str(error), []
    return "" if agrees(found, limit) else f"{_told(found)}: expected at most {limit:g} from torch in float32", found


def _in_precision(part: Part, right: Reference, precision: PartPrecision) -> list[Parity]:
    """How far the precision alone is, which the part is converted to; nothing in float32."""
    if precision == "float32":
        return []
    in_precision(part.module, precision)
    return compare_precision(right, part, precision)


def _with_onnx_runtime(
    found: list[Parity], right: Reference, path: Path, precision: PartPrecision, *, threads: int
) -> list[Parity]:
    """How far the file is by ONNX Runtime, which adds up in float32 what it has no other kernel for; or what was found.

    ONNX Runtime's CPU backend has no kernels for bfloat16: there it is the precision alone, as torch has it.
    """
    if precision == "bfloat16":
        return found
    give_back_memory()  # of torch's weights, which are freed by now: the runtime's own need the room
    return worse(found, compare(right, OnnxEngine(path, name=right.part, threads=threads)))


def build_plans(pack: EnginePack, builder: PlanBuilder, *, flags: tuple[str, ...], report: Report) -> list[Path]:
    """Compile a plan for each exported part; only what agrees with torch in float32 is kept.

    Parameters
    ----------
    pack : EnginePack
        From `export_pack`.
    builder : PlanBuilder
    flags : tuple of str
        Options of the compiler.
    report : callable
        Is given a line for each part.

    Returns
    -------
    list of Path
        The plans.

    Raises
    ------
    EngineError
        There are no exported parts, the compiler refuses one, or a plan differs from torch.
    """
    known = exported(pack)
    hardware = builder.hardware()
    for table in known.values():
        _insist_on_version(pack.folder / table.file, hardware.tensorrt)
    keys = plan_keys(pack, hardware, flags)
    written = []
    for stage, part in parts_of(pack):
        spec, key = known[part.name], keys[part.name]
        plan = builder.build(pack.folder / spec.file, key.profile, flags)
        right = reference(loaded(pack, stage, part.name), **sizes_of(pack))
        found = compare(right, builder.load(plan, part.name))
        _insist(found, spec.tolerance)
        written.append(write_plan(pack.folder, part.name, key, plan, {one.output: one.difference for one in found}))
        report(f"{part.name}: {_told(found)}, plan {key.digest}")
    return written


def write_plan(folder: Path, stage: str, key: PlanKey, plan: bytes, parity: Mapping[str, float]) -> Path:
    """Write a plan with its key beside it.

    Parameters
    ----------
    folder : Path
        Of the pack.
    stage : str
    key : PlanKey
    plan : bytes
    parity : mapping of str to float
        Largest difference of each output from the reference on fixed inputs.

    Returns
    -------
    Path
        The plan.
    """
    target = folder / "plans" / key.digest / f"{stage}.plan"
    target.parent.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "schema": SCHEMA,
        "key": key.fields(),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "parity": dict(parity),
    }
    for path, content in ((target, plan), (target.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())):
        draft = path.with_name(f".{path.name}.draft")
        draft.write_bytes(content)
        os.replace(draft, path)
    return target


def verify_parts(pack: EnginePack, *, threads: int) -> Iterator[tuple[Part, list[Parity]]]:
    """Compare every exported part of a pack with torch again, as `export_pack` did."""
    known = exported(pack)
    for stage, part in parts_of(pack):
        spec = known[part.name]
        right = reference(loaded(pack, stage, part.name), **sizes_of(pack))
        found = _in_precision(loaded(pack, stage, part.name), right, spec.precision)
        path = pack.folder / spec.file
        yield part, _with_onnx_runtime(found, right, path, spec.precision, threads=threads)


def _insist_on_version(path: Path, version: str) -> None:
    """Refuse a library that cannot read a network, before any is compiled.

    Raises
    ------
    EngineError
    """
    model = onnx.load(path, load_external_data=False)
    if any(node.op_type == "Attention" for node in model.graph.node):
        numbers = tuple(int(number) for number in version.split(".")[:2])
        if numbers < _READS_ATTENTION:
            raise EngineError(
                f"{path.name}: expected TensorRT {'.'.join(map(str, _READS_ATTENTION))} or newer, which reads the "
                f"attention of opset {OPSET}, got {version}: pip install a newer tensorrt"
            )


def _measured(found: list[Parity]) -> float:
    """Return what the file differs by, as ``pack.toml`` tells it beside what it may."""
    return float(f"{max(one.difference for one in found):.2g}")


def _insist(found: list[Parity], tolerance: float) -> None:
    if not agrees(found, tolerance):
        raise EngineError(
            f"{_told(found)}: expected at most {tolerance:g} from torch in float32; nothing was kept. {_REMEDY}"
        )


def _told(found: list[Parity]) -> str:
    worst = max(found, key=lambda one: float("inf") if np.isnan(one.difference) else one.difference)
    return f"{worst.output} differs by {worst.difference:.1e}"
