"""Exporting a pack to ONNX and compiling plans, each kept only if it computes what torch computes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from msgspec.structs import replace
from safetensors.numpy import save_file
from safetensors.torch import load_file

from engines.compile.onnx_export import OPSET, export_part, parts_of
from engines.compile.parity import Parity, agrees, compare
from engines.sealed_copies import exported_files, seal_copy
from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.plans import SCHEMA, PlanKey, PlanRuntime, Profile, exported, plan_keys, sizes_of
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription, PartTable, Precision

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference from torch in float32, over the largest value, that a pack asks by its tensors' precision."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Report = Callable[[str], None]


class PlanBuilder(PlanRuntime, Protocol):
    """The seam to the library that compiles plans."""

    def build(self, onnx: Path, profile: Profile, flags: tuple[str, ...] = ()) -> bytes:
        """Compile a network. Raises EngineError with the library's reasons."""
        ...


def export_pack(
    pack: EnginePack, out: Path, *, precision: Precision, tolerance: float | None = None, report: Report
) -> str:
    """Write a pack with an ONNX file for each part, sealed after each was compared with torch.

    Parameters
    ----------
    pack : EnginePack
        With weights of networks.
    out : Path
        Folder of the new pack.
    precision : {"float32", "float16", "bfloat16"}
        Of the tensors in the files. ONNX Runtime's CPU backend runs no bfloat16: such a file is compared when a plan is
        compiled from it.
    tolerance : float or None
        Largest difference from torch in float32 over the largest value, kept in ``pack.toml`` and asked of plans too;
        None takes that of the precision (`TOLERANCES`).
    report : callable
        Is given a line for each part.

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

    limit = TOLERANCES[precision] if tolerance is None else tolerance

    def change(folder: Path) -> PackDescription:
        ridge = pack.description.stages.get("ridge")
        if ridge is not None:  # an input of its part: read by numpy, which has no bfloat16
            weights = load_file(pack.folder / ridge.file)
            save_file({name: value.float().numpy() for name, value in weights.items()}, folder / ridge.file)
        table: dict[str, PartTable] = {}
        for stage, part in parts_of(pack):
            path = folder / f"{part.name}.onnx"
            export_part(part, path, dtype=_DTYPES[precision])
            found = []
            if precision != "bfloat16":
                engine = OnnxEngine(path, name=part.name, threads=torch.get_num_threads())
                found = compare(part, engine, **sizes_of(pack))
                _insist(found, limit)
            table[part.name] = PartTable(
                stage=stage,
                file=path.name,
                precision=precision,
                tolerance=limit,
                difference=_measured(found),
                opset=OPSET,
                inputs=part.inputs,
                outputs=list(part.outputs),
            )
            report(f"{part.name}: {_told(found)}")
        return replace(pack.description, parts=table)

    return seal_copy(pack, out, change, without=exported_files(pack))


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
    keys = plan_keys(pack, builder.hardware(), flags)
    written = []
    for _, part in parts_of(pack):
        spec, key = known[part.name], keys[part.name]
        plan = builder.build(pack.folder / spec.file, key.profile, flags)
        found = compare(part, builder.load(plan, part.name), **sizes_of(pack))
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
    """Compare every exported part of a pack with torch again; of bfloat16, which ONNX Runtime lacks, none."""
    known = exported(pack)
    for _, part in parts_of(pack):
        spec = known[part.name]
        if spec.precision == "bfloat16":
            yield part, []
            continue
        engine: Engine = OnnxEngine(pack.folder / spec.file, name=part.name, threads=threads)
        yield part, compare(part, engine, **sizes_of(pack))


def _measured(found: list[Parity]) -> float | None:
    """Return what the file differs by, as ``pack.toml`` tells it beside what it may."""
    return float(f"{max(one.difference for one in found):.2g}") if found else None


def _insist(found: list[Parity], tolerance: float) -> None:
    if not agrees(found, tolerance):
        raise EngineError(
            f"{_told(found)}: expected at most {tolerance:g} from torch in float32; nothing was kept. "
            "engines export --tolerance states what a pack is held to"
        )


def _told(found: list[Parity]) -> str:
    worst = max(found, key=lambda one: one.difference, default=None)
    return "compared when a plan is compiled" if worst is None else f"{worst.output} differs by {worst.difference:.1e}"
