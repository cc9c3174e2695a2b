"""Exporting a pack to ONNX and compiling plans, each kept only if it computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from engines.compile.onnx_export import OPSET, export_part, parts_of
from engines.compile.parity import Parity, agrees, compare
from engines.sealed_copies import exported_files, seal_copy
from rtdecode.bundle import EnginePack
from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.decode.runtime.parts import Part
from rtdecode.decode.runtime.plans import PlanRuntime, Profile, exported, plan_keys, sizes_of, write_plan
from rtdecode.errors import EngineError

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference from torch in float32, over the largest value, that a pack asks by its tensors' precision."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Report = Callable[[str], None]


class PlanBuilder(PlanRuntime, Protocol):
    """The seam to the library that compiles plans."""

    def build(self, onnx: Path, profile: Profile, flags: tuple[str, ...] = ()) -> bytes:
        """Compile a network. Raises EngineError with the library's reasons."""
        ...


def export_pack(pack: EnginePack, out: Path, *, precision: str, tolerance: float | None = None, report: Report) -> str:
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
    if not any("network" in spec for spec in pack.config["stages"].values()):
        raise EngineError(f"pack {pack.name}: expected stages with weights of networks, got ONNX files already")

    limit = TOLERANCES[precision] if tolerance is None else tolerance

    def change(folder: Path) -> dict[str, Any]:
        ridge = pack.config["stages"].get("ridge")
        if ridge is not None:  # an input of its part: read by numpy, which has no bfloat16
            weights = load_file(pack.folder / ridge["file"])
            save_file({name: value.float().numpy() for name, value in weights.items()}, folder / ridge["file"])
        table: dict[str, Any] = {}
        for stage, part in parts_of(pack):
            path = folder / f"{part.name}.onnx"
            export_part(part, path, dtype=_DTYPES[precision])
            found = []
            if precision != "bfloat16":
                engine = OnnxEngine(path, name=part.name, threads=torch.get_num_threads())
                found = compare(part, engine, **sizes_of(pack))
                _insist(found, limit)
            table[part.name] = {
                "stage": stage,
                "file": path.name,
                "precision": precision,
                "tolerance": limit,
                **_measured(found),
                "opset": OPSET,
                "inputs": part.inputs,
                "outputs": list(part.outputs),
            }
            report(f"{part.name}: {_told(found)}")
        return {**pack.config, "parts": table}

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
        plan = builder.build(pack.folder / spec["file"], key.profile, flags)
        found = compare(part, builder.load(plan, part.name), **sizes_of(pack))
        _insist(found, spec["tolerance"])
        written.append(write_plan(pack.folder, part.name, key, plan, {one.output: one.difference for one in found}))
        report(f"{part.name}: {_told(found)}, plan {key.digest}")
    return written


def verify_parts(pack: EnginePack, *, threads: int) -> Iterator[tuple[Part, list[Parity]]]:
    """Compare every exported part of a pack with torch again; of bfloat16, which ONNX Runtime lacks, none."""
    known = exported(pack)
    for _, part in parts_of(pack):
        spec = known[part.name]
        if spec["precision"] == "bfloat16":
            yield part, []
            continue
        engine: Engine = OnnxEngine(pack.folder / spec["file"], name=part.name, threads=threads)
        yield part, compare(part, engine, **sizes_of(pack))


def _measured(found: list[Parity]) -> dict[str, float]:
    """Tell ``pack.toml`` what the file differs by, beside what it may."""
    return {"difference": float(f"{max(one.difference for one in found):.2g}")} if found else {}


def _insist(found: list[Parity], tolerance: float) -> None:
    if not agrees(found, tolerance):
        raise EngineError(
            f"{_told(found)}: expected at most {tolerance:g} from torch in float32; nothing was kept. "
            "engines export --tolerance states what a pack is held to"
        )


def _told(found: list[Parity]) -> str:
    worst = max(found, key=lambda one: one.difference, default=None)
    return "compared when a plan is compiled" if worst is None else f"{worst.output} differs by {worst.difference:.1e}"
