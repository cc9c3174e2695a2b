"""How long a beta takes to become tokens, caption and picture.

The shipped pack, and MindEye2's shapes with random weights. On a GPU the full shapes are timed beside the floor that
bytes and multiplications set (``FLOORS``), and few steps beside the published 38 in the same run. Without one the same
is done at cut-down shapes on the CPU, and the figures of the GPU are owed. The picture must be finite and the same
twice, or nothing is timed.

    python bench/decode.py [--json FILE] [--quick] [--dims cut|full]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import print_table, write_json

from engines.published.fake import write_fake_mindeye2
from engines.timing import time_pack
from rtdecode.bundle import open_pack
from rtdecode.decode.backends import choose, load_mindeye2
from rtdecode.decode.mindeye2.decoder import MindEye2
from rtdecode.decode.mindeye2.recipe import Recipe

# ms from beta to picture at each px: 2 evaluations of the prior, 2 steps, a small autoencoder, batch 1. Bytes over
# 4.3 TB/s or multiplications over 790 TFLOP/s, whichever takes longer: an H200's rates as given, not measured here.
FLOORS = {512: 6.0, 768: 11.5}
STAGES = ("ridge", "backbone", "prior", "converter", "captioner", "unclip", "autoencoder", "blurry_autoencoder")
STEPS = (1, 2, 4, 38)
FEW_PRIOR_STEPS = 3  # DDIM: two evaluations
GOAL = 20.0


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


def with_steps(mind: MindEye2, steps: int, prior_steps: int = FEW_PRIOR_STEPS) -> MindEye2:
    guidance = 5.0 if steps == 38 else 1.0  # a student has its guidance baked in
    mind.recipe = Recipe(prior_steps=prior_steps, unclip_steps=steps, unclip_guidance=guidance)
    return mind


def stages(mind: MindEye2, beta: Any, times: int) -> dict[str, dict[str, float]]:
    """Time what one beta goes through, part by part."""
    with_steps(mind, 2)
    hidden = mind.embed(beta)
    tokens = mind.clean(hidden, seed=0)
    found = {
        "ridge and backbone": timed(lambda: mind.embed(beta), times),
        "prior, 2 evaluations": timed(lambda: mind.clean(hidden, seed=0), times),
        "caption": timed(lambda: mind.caption(tokens), times),
    }
    for steps in STEPS:
        with_steps(mind, steps)
        runs = max(2, times // steps)
        found[f"unclip and autoencoder, {steps} steps"] = timed(lambda: mind.picture(hidden, tokens, seed=0), runs)
    return found


def mindeye2(dims: str, times: int, folder: Path) -> dict[str, Any]:
    """Time a pack of random weights in MindEye2's shapes."""
    write_fake_mindeye2(folder / dims, dims=dims, stages=STAGES, precision="float16")
    pack = open_pack(str(folder / dims))
    backend = choose("torch", pack)
    began = time.perf_counter()
    mind = load_mindeye2(pack, backend=backend, threads=torch.get_num_threads())
    load_s = time.perf_counter() - began
    beta = np.random.default_rng(0).standard_normal(mind.voxels).astype(np.float32)
    with_steps(mind, 2)
    first, second = mind.decode(beta, seed=1), mind.decode(beta, seed=1)
    if first.picture is None or second.picture is None or not np.isfinite(first.picture).all():
        raise SystemExit("the picture is not finite: the timings would mean nothing")
    if not np.array_equal(first.picture, second.picture):
        raise SystemExit("the same beta and seed gave two pictures: the timings would mean nothing")
    found = stages(mind, beta, times)
    whole = {
        f"beta to picture, {steps} steps": timed(partial(_whole, mind, beta, steps), max(2, times // steps))
        for steps in (2, 38)
    }
    few, many = (ms["median_ms"] for ms in whole.values())
    gpu = torch.cuda.is_available()
    return {
        "dims": dims,
        "px": first.picture.shape[-1],
        "backend": backend.name,
        "precision": backend.precision,
        "load_s": load_s,
        "stages": found,
        "whole": whole,
        "few_against_38": many / few,
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }


def _whole(mind: MindEye2, beta: Any, steps: int) -> None:
    with_steps(mind, steps, 20 if steps == 38 else FEW_PRIOR_STEPS)
    hidden = mind.embed(beta)
    mind.picture(hidden, mind.clean(hidden, seed=0), seed=0)


def report(tiny: Sequence[Any], found: dict[str, Any]) -> None:
    rows = [[one["part"], f"{one['median_ms']:.2f}", f"{one['p99_ms']:.2f}"] for one in tiny]
    print_table("The shipped pack, ONNX Runtime, one CPU thread", ["part", "median ms", "p99 ms"], rows)
    rows = [
        [name, f"{ms['median_ms']:.1f}", f"{ms['p99_ms']:.1f}"]
        for name, ms in {**found["stages"], **found["whole"]}.items()
    ]
    run_by = f"{found['backend']} {found['precision']}"
    title = f"MindEye2 with random weights, {found['dims']} shapes, {found['px']} px, {run_by}"
    print_table(title, ["", "median ms", "p99 ms"], rows)
    print(f"\n2 steps against the published 38, both with all else: {found['few_against_38']:.1f} x (goal {GOAL:g} x)")
    if found["peak_gpu_gib"] is None:
        print("No GPU: its figures, beside the floors, are owed.")
        return
    floor = FLOORS[found["px"]]
    got = found["whole"]["beta to picture, 2 steps"]["median_ms"]
    print(f"Beta to picture {got:.1f} ms, floor {floor} ms: {got / floor:.2f} x (goal 2.5 x)")
    print(f"Peak of GPU memory {found['peak_gpu_gib']:.1f} GiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    parser.add_argument(
        "--dims", choices=("small", "cut", "full"), help="full needs a GPU; by default as the machine allows"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dims = arguments.dims or ("small" if arguments.quick else "full" if torch.cuda.is_available() else "cut")
    times = 2 if arguments.quick else 30 if torch.cuda.is_available() else 5
    tiny = [
        {"part": one.part, "median_ms": one.median_ms, "p99_ms": one.p99_ms}
        for one in time_pack(open_pack("tiny"), "onnx", threads=1, times=times)
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = mindeye2(dims, times, Path(folder))
    report(tiny, found)
    if arguments.json:
        write_json(arguments.json, {"tiny": tiny, "mindeye2": found, "gpu_owed": not torch.cuda.is_available()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
