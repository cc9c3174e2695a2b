"""How long a beta takes to become tokens, caption and picture.

The shipped pack, and MindEye2's shapes with random weights. On a GPU the full shapes are timed at 512 and 768 px beside
the floor that bytes and multiplications set (``FLOORS``), and few steps with a small autoencoder beside the published
38 in the same run. Without one the same is done at cut-down shapes on the CPU, and the figures of the GPU are owed.
First a cut-down pack must give on the device what it gives on the CPU, and every picture must be finite and the same
twice, or nothing is timed.

    python bench/decode.py [--json FILE] [--quick] [--dims cut|full] [--precision float16|bfloat16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import print_table, write_json

from engines.compile.part_times import time_pack
from engines.importing.fake import write_fake_mindeye2
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_stages import MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import Recipe
from rtdecode.decode.families.mindeye2.torch_stages import load_stages
from rtdecode.decode.runtime.backends import choose
from rtdecode.packs import open_pack

# ms from beta to picture by px and steps: 2 evaluations of the prior, a small autoencoder, batch 1. Bytes over
# 4.3 TB/s or multiplications over 790 TFLOP/s, whichever takes longer: an H200's rates as given, not measured here.
FLOORS = {512: {1: 3.9, 2: 6.0, 4: 10.3}, 768: {1: 6.7, 2: 11.5, 4: 21.0}}
STAGES = (
    *("ridge", "backbone", "prior", "converter", "captioner"),
    *("unclip", "autoencoder", "small_autoencoder", "blurry_autoencoder"),
)
PUBLISHED = Recipe()
FEW = Recipe(
    prior_steps=2,
    prior_sampler="consistency",
    unclip_sampler="consistency",
    unclip_guidance=1.0,
    small_autoencoder=True,
)
STEPS = (1, 2, 4)
SIDES = (64, 96)  # of the latents of 512 and 768 px
ALIKE = 1e-2
GOAL, FLOOR_GOAL, GIB_GOAL = 20.0, 2.5, 16.0


def timed(action: Callable[[], object], times: int) -> dict[str, float]:
    action()
    taken = []
    for _ in range(times):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return {"median_ms": float(np.median(taken)), "p99_ms": float(np.quantile(taken, 0.99))}


def recipe(steps: int) -> Recipe:
    return PUBLISHED if steps == PUBLISHED.unclip_steps else replace(FEW, unclip_steps=steps)


def draw(mind: MindEye2, beta: Any) -> Any:
    hidden = mind.embed(beta)
    return mind.picture(hidden, mind.clean(hidden, seed=0), seed=0)


def agreement(folder: Path, device: str) -> float:
    """Largest difference of a cut-down pack's picture on a device from the CPU's, both in float32."""
    write_fake_mindeye2(folder / "small", dims="small", stages=STAGES, precision="float32")
    pack = open_pack(str(folder / "small"))
    minds = [MindEye2(load_stages(pack, device=where), recipe(2)) for where in ("cpu", device)]
    beta = np.random.default_rng(0).standard_normal(minds[0].voxels).astype(np.float32)
    expected, found = (draw(mind, beta) for mind in minds)
    difference = float(np.abs(found - expected).max())
    if not difference <= ALIKE:
        raise SystemExit(f"the picture differs by {difference:.1e} between {device} and CPU: nothing is timed")
    return difference


def at_side(stages: MindEye2Stages, side: int, beta: Any, times: int) -> dict[str, Any]:
    """Time what one beta goes through, part by part and as a whole, at one size of the picture."""
    stages = replace(stages, latent_side=side)
    mind = MindEye2(stages, recipe(2))
    first, second = draw(mind, beta), draw(mind, beta)
    if not np.isfinite(first).all():
        raise SystemExit("the picture is not finite: the timings would mean nothing")
    if not np.array_equal(first, second):
        raise SystemExit("the same beta and seed gave two pictures: the timings would mean nothing")
    hidden = mind.embed(beta)
    tokens = mind.clean(hidden, seed=0)
    parts = {
        "ridge and backbone": timed(lambda: mind.embed(beta), times),
        "prior, 2 evaluations": timed(lambda: mind.clean(hidden, seed=0), times),
        "caption": timed(lambda: mind.caption(tokens), times),
    }
    whole = {}
    for steps in (*STEPS, PUBLISHED.unclip_steps):
        mind = MindEye2(stages, recipe(steps))
        runs = max(2, times // steps)
        parts[f"unCLIP and autoencoder, {steps} steps"] = timed(partial(mind.picture, hidden, tokens, seed=0), runs)
        whole[f"beta to picture, {steps} steps"] = timed(partial(draw, mind, beta), runs)
    few, many = (whole[f"beta to picture, {steps} steps"]["median_ms"] for steps in (2, PUBLISHED.unclip_steps))
    return {"px": first.shape[-1], "parts": parts, "whole": whole, "few_against_38": many / few}


def mindeye2(dims: str, precision: str | None, times: int, folder: Path) -> dict[str, Any]:
    """Time a pack of random weights in MindEye2's shapes."""
    write_fake_mindeye2(folder / dims, dims=dims, stages=STAGES, precision="float16")
    pack = open_pack(str(folder / dims))
    backend = choose("torch", pack)
    precision = precision or backend.precision
    alike = agreement(folder, backend.device)
    began = time.perf_counter()
    stages = load_stages(pack, device=backend.device, precision=precision)
    load_s = time.perf_counter() - began
    beta = np.random.default_rng(0).standard_normal(stages.ridge[0].shape[1]).astype(np.float32)
    sides = SIDES if dims == "full" else (stages.latent_side,)
    gpu = torch.cuda.is_available()
    return {
        "dims": dims,
        "backend": backend.name,
        "precision": precision,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "difference_from_cpu": alike,
        "load_s": load_s,
        "sides": [at_side(stages, side, beta, times) for side in sides],
        "peak_gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if gpu else None,
    }


def report(tiny: Sequence[Any], found: dict[str, Any]) -> None:
    rows = [[one["part"], f"{one['median_ms']:.2f}", f"{one['p99_ms']:.2f}"] for one in tiny]
    print_table("The shipped pack, ONNX Runtime, one CPU thread", ["part", "median ms", "p99 ms"], rows)
    run_by = f"{found['backend']} {found['precision']} on {found['gpu'] or 'the CPU'}"
    for side in found["sides"]:
        floors = FLOORS.get(side["px"], {}) if found["peak_gpu_gib"] is not None else {}
        of = {f"beta to picture, {steps} steps": ms for steps, ms in floors.items()}
        rows = [
            [name, f"{ms['median_ms']:.1f}", f"{ms['p99_ms']:.1f}", f"{of[name]:.1f}" if name in of else ""]
            for name, ms in {**side["parts"], **side["whole"]}.items()
        ]
        title = f"MindEye2 with random weights, {found['dims']} shapes, {side['px']} px, {run_by}"
        print_table(title, ["", "median ms", "p99 ms", "floor"], rows)
        print(f"\n2 steps against the published path: {side['few_against_38']:.1f} x (goal {GOAL:g} x)")
        if floors:
            got = side["whole"]["beta to picture, 2 steps"]["median_ms"]
            print(f"2 steps against their floor: {got / floors[2]:.2f} x (goal {FLOOR_GOAL:g} x)")
    if found["peak_gpu_gib"] is None:
        print("No GPU: its figures, beside the floors, are owed.")
    else:
        print(f"Peak of GPU memory, captions included: {found['peak_gpu_gib']:.1f} GiB (goal {GIB_GOAL:g})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    parser.add_argument(
        "--dims", choices=("small", "cut", "full"), help="full needs a GPU; by default as the machine allows"
    )
    parser.add_argument("--precision", choices=("float32", "float16", "bfloat16"), help="by default as in a session")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dims = arguments.dims or ("small" if arguments.quick else "full" if torch.cuda.is_available() else "cut")
    times = 2 if arguments.quick else 30 if torch.cuda.is_available() else 5
    tiny = [
        {"part": one.part, "median_ms": one.median_ms, "p99_ms": one.p99_ms}
        for one in time_pack(open_pack("tiny"), "onnx", threads=1, times=times)
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = mindeye2(dims, arguments.precision, times, Path(folder))
    report(tiny, found)
    if arguments.json:
        write_json(arguments.json, {"tiny": tiny, "mindeye2": found, "gpu_owed": not torch.cuda.is_available()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
