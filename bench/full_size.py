"""MindEye2 in full size on the CPU: published files to a pack, to ONNX files, to one picture; time and memory of each.

Random weights, in half precision, under the published names and in the published shapes; what breaks at this size only
breaks here. The picture is of 768 px in two steps of prior and unCLIP each, by the small autoencoder. Every step is a
process of its own, whose peak of memory the system tells.

    python bench/full_size.py [--dims full|small] [--threads 2] [--folder DIR] [--json FILE]

Full size needs 40 GB of disk and 24 GiB of memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import print_table, write_json
from safetensors.torch import save_file
from torch import Tensor

from engines.importing.fake import random_pieces
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.families.mindeye2.assembly import load_engines
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.recipe import Recipe
from rtdecode.decode.networks.backbone import Backbone, BackboneShape
from rtdecode.decode.networks.build import empty
from rtdecode.decode.runtime.runner import compiled_runner
from rtdecode.packs import open_pack
from tests.published import mindeye2_state, save_last, save_unclip, sgm_autoencoder, sgm_unet, stripped

MIXER_BLOCKS = 4
TWO_STEPS = Recipe(
    prior_steps=2,
    prior_sampler="consistency",
    unclip_steps=2,
    unclip_sampler="consistency",
    unclip_guidance=1.0,
    small_autoencoder=True,
)


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw weights in half precision, a piece of a tensor at a time."""
    state = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        flat, at = state[name].view(-1), 0
        for piece in random_pieces({name: shape}, 0):
            flat[at : at + len(piece.view(-1))] = piece.view(-1)
            at += piece.numel()
    return state


def of_stage(sizes: tuple[str, dict[str, Any]]) -> dict[str, Tensor]:
    return drawn({name: tuple(value.shape) for name, value in empty(*sizes).state_dict().items()})


def write_published(folder: Path, dims: str) -> None:
    """Write the three files that a pack is imported from, as they were published."""
    sizes = mindeye2_sizes(dims)
    shape = BackboneShape(**{**sizes["backbone"][1], "blocks": MIXER_BLOCKS})
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Backbone(shape).state_dict().items()}
    state = mindeye2_state(
        voxels=sizes["ridge"][1]["voxels"],
        ridge=of_stage(sizes["ridge"]),
        backbone=drawn(shapes),
        prior=of_stage(sizes["prior"]),
        shape=shape,
        prior_sizes=sizes["prior"][1],
    )
    save_last(folder / "last.pth", state)
    del state
    unclip = sgm_unet(stripped(of_stage(sizes["unclip"]), "unet."))
    unclip |= sgm_autoencoder(stripped(of_stage(sizes["autoencoder"]), "vae."))
    save_unclip(folder / "unclip.ckpt", unclip)
    save_file(of_stage(sizes["small_autoencoder"]), folder / "small.safetensors")


def draw_picture(pack: Path, threads: int) -> None:
    """Draw the picture of a random beta; it must be finite and no plain grey."""
    opened = open_pack(str(pack))
    mind = MindEye2(load_engines(opened, compiled_runner(opened, "onnx", threads=threads)), TWO_STEPS)
    beta = np.random.default_rng(0).standard_normal(mind.voxels).astype(np.float32)
    hidden = mind.embed(beta)
    picture = mind.picture(hidden, mind.clean(hidden, seed=0), seed=0)
    if picture is None or not np.isfinite(picture).all() or picture.std() == 0:
        raise SystemExit("the picture is not one")
    print(
        f"picture of {picture.shape[1]} x {picture.shape[2]}, mean {picture.mean():.3f}, deviation {picture.std():.3f}"
    )


def measured(command: list[str]) -> tuple[float, float]:
    """Run a process; seconds, and GiB at its peak."""
    print("+", " ".join(command[1:]), flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def all_steps(folder: Path, dims: str, threads: int) -> dict[str, tuple[float, float]]:
    this = [sys.executable, __file__, "--dims", dims, "--threads", str(threads), "--folder", str(folder), "--only"]
    engines = [sys.executable, "-m", "rtdecode", "engines"]
    files = {"weights": "last.pth", "unclip": "unclip.ckpt", "small-autoencoder": "small.safetensors"}
    given = [word for option, name in files.items() for word in (f"--{option}", str(folder / name))]
    half = ["--precision", "float16"]
    steps: dict[str, Callable[[], list[str]]] = {
        "published files": lambda: [*this, "files"],
        "import": lambda: [
            *(*engines, "import", "mindeye2", *given, *half),
            *("--licence", "none: random weights", "--out", str(folder / "pack")),
        ],
        "export": lambda: [*engines, "export", str(folder / "pack"), *half, "--out", str(folder / "exported")],
        "picture": lambda: [*this, "picture"],
    }
    found = {}
    for name, command in steps.items():
        found[name] = measured(command())
        print(f"{name}: {found[name][0]:.0f} s, {found[name][1]:.1f} GiB at the peak", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", choices=("full", "small"), default="full")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=("files", "picture"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    if args.only == "files":
        write_published(args.folder, args.dims)
        return 0
    if args.only == "picture":
        draw_picture(args.folder / "exported", args.threads)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = all_steps(Path(folder), args.dims, args.threads)
        sizes = {name: sum(p.stat().st_size for p in (Path(folder) / name).iterdir()) for name in ("pack", "exported")}
    rows = [[name, f"{seconds:.0f}", f"{peak:.1f}"] for name, (seconds, peak) in found.items()]
    print_table(f"MindEye2, {args.dims} size, {args.threads} threads", ["step", "s", "peak GiB"], rows)
    if args.json:
        steps = {name: {"s": seconds, "peak_gib": peak} for name, (seconds, peak) in found.items()}
        write_json(args.json, {"dims": args.dims, "threads": args.threads, "steps": steps, "bytes": sizes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
