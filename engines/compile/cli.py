"""`engines export`, `build`, `verify`, `list` and `bench`."""

from __future__ import annotations

import argparse
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engines.compile.part_times import BACKENDS
from rtdecode.decode.families.latent_map import latents_of
from rtdecode.decode.runtime.plans import sidecars
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.packs.sealed import check_numbers, check_target

_PRECISIONS = ("float32", "mixed", "float16", "bfloat16")
_UNTRIED = "TensorRT plans of this project were compiled and run behind a stand-in only, never on a GPU yet"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    export = commands.add_parser("export", help="write a pack with ONNX files, compared with torch")
    export.add_argument("pack", help="name of an installed pack, or a folder, with weights of networks")
    export.add_argument("--out", type=Path, required=True, help="folder of the new pack")
    export.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="float32",
        help="of the parts, where they bear it; mixed: products in float16, the rest in float32",
    )
    export.add_argument(
        "--tolerance", type=float, help="largest difference from torch, relative, of ONNX files and of plans from them"
    )
    export.add_argument(
        "--strict",
        action="store_true",
        help="refuse where a part differs by more, instead of a better precision for it",
    )
    export.set_defaults(handler=_export)

    build = commands.add_parser("build", help="compile TensorRT plans for this GPU; kept only if they equal torch")
    build.add_argument("pack", help="folder of an exported pack")
    build.add_argument("--flag", action="append", default=[], metavar="NAME", help="builder flag; may be repeated")
    build.set_defaults(handler=_build)

    verify = commands.add_parser(
        "verify", help="check a pack against its manifest, its numbers, and its ONNX files against torch"
    )
    verify.add_argument("pack", help="name of an installed pack, or a folder")
    verify.add_argument("--threads", type=int, default=1, help="CPU threads")
    verify.set_defaults(handler=_verify)

    listing = commands.add_parser("list", help="list installed packs, or the given ones, and their plans")
    listing.add_argument("packs", nargs="*", help="folders")
    listing.set_defaults(handler=_list)

    bench = commands.add_parser("bench", help="time every part of a pack")
    bench.add_argument("pack", help="name of an installed pack, or a folder")
    bench.add_argument("--backend", choices=BACKENDS, default="onnx")
    bench.add_argument("--threads", type=int, default=1, help="CPU threads")
    bench.add_argument("--times", type=int, default=30, help="runs of each part")
    bench.set_defaults(handler=_bench)


def _export(args: argparse.Namespace) -> int:
    from engines.compile.plan_building import export_pack

    check_target(args.out)
    identity = export_pack(
        open_pack(args.pack),
        args.out,
        precision=args.precision,
        tolerance=args.tolerance,
        strict=args.strict,
        report=print,
    )
    print(f"{args.out}: sealed as {identity}")
    return 0


def _build(args: argparse.Namespace) -> int:
    from engines.compile.plan_building import build_plans
    from rtdecode.decode.runtime.tensorrt import TensorRT

    build_plans(open_pack(args.pack), TensorRT(), flags=tuple(args.flag), report=print)
    return 0


def _verify(args: argparse.Namespace) -> int:
    pack = open_pack(args.pack)
    print(f"{pack.folder}: {pack.name}, sealed as {pack.identity}")
    check_numbers(pack.folder)
    for stage, spec in pack.description.stages.items():
        print(f"  {stage}: {', '.join(spec.inputs)} -> {', '.join(spec.outputs)}")
    if (latents := latents_of(pack)) is not None:
        print(
            f"  latents: image tokens -> hidden, {latents.components} components, held-out R2 "
            f"{latents.held_out_r2:.3f} over {latents.pictures} pictures"
        )
    if not pack.description.parts:
        return 0
    from engines.compile.parity import agrees
    from engines.compile.plan_building import verify_parts

    title = "ONNX Runtime against torch; bfloat16, which it does not run, by torch alone"
    table = Table("part", "precision", "output", "difference from float32, relative", "at most", title=title)
    right = True
    for part, found in verify_parts(pack, threads=args.threads):
        exported = pack.description.parts[part.name]
        right = right and agrees(found, exported.tolerance)
        for one in found:
            table.add_row(one.part, exported.precision, one.output, f"{one.difference:.1e}", f"{exported.tolerance:g}")
    Console().print(table)
    return 0 if right else 1


def _list(args: argparse.Namespace) -> int:
    table = Table("pack", "folder", "stages", "plans")
    points = sorted(entry_points(group="rtdecode.packs"), key=lambda point: point.name)
    names = args.packs or [point.name for point in points]
    failed = False
    for name in names:
        try:
            pack = open_pack(name)
        except (BundleError, EngineError) as error:
            failed = True
            table.add_row(name, "", f"[red]{error}[/]", "")
            continue
        table.add_row(pack.name, str(pack.folder), ", ".join(pack.description.stages), _plans(pack) or "none")
    Console().print(table)
    print(_UNTRIED)
    return 2 if failed else 0


def _plans(pack: EnginePack) -> str:
    kinds = Counter(
        "TensorRT {tensorrt}, {gpu}, {precision}".format(**said["key"])
        for part in pack.description.parts
        for said in sidecars(pack, part).values()
        if "key" in said
    )
    return "; ".join(f"{count} for {kind}" for kind, count in kinds.items())


def _bench(args: argparse.Namespace) -> int:
    from engines.compile.part_times import time_pack

    pack = open_pack(args.pack)
    table = Table(
        "part", "median ms", "p99 ms", title=f"{pack.name}, {args.backend}, {args.threads} CPU threads, batch 1"
    )
    found = list(time_pack(pack, args.backend, threads=args.threads, times=args.times))
    for one in found:
        table.add_row(one.part, f"{one.median_ms:.2f}", f"{one.p99_ms:.2f}")
    Console().print(table)
    for one in found:
        if one.fallback:
            print(one.fallback)
    return 0
