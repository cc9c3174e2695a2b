"""How long a beta takes to become tokens, picture, message and caption, beside the least that the device allows.

The shipped pack, and MindEye2's shapes with random weights. On a GPU the full shapes are timed at 512 and 768 px, few
steps with a small autoencoder beside the published 38 in the same run; without one the same is done at cut-down shapes
on the CPU, and the figures of the GPU are owed. The device's own rates are measured first, and what they make the floor
of each part. Then a small pack must give on the device what it gives on the CPU, part by part in each precision, and
every picture must be finite and the same twice, or nothing is timed. What may make the unCLIP faster (channels_last,
torch.compile, FP8) stands beside it as it is, each with the difference that it makes; fine-tuning tells steps a second.

    python bench/device.py [--json FILE] [--quick] [--dims small|cut|full] [--precision float16|bfloat16] [--trace FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _card import Card, least_ms, measure, waited
from _card import timed as time_it
from _moves import TRIALS, moves, tuning
from _report import print_table, write_json

from engines.compile.onnx_export import loaded, parts_of
from engines.compile.parity import compare_precision, reference
from engines.compile.part_times import time_pack
from engines.compile.precisions import PRECISIONS, borne, in_precision, tolerance_of
from engines.importing.fake import write_fake_mindeye2
from rtdecode import client as wire
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_stages import MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import Recipe
from rtdecode.decode.families.mindeye2.torch_stages import load_stages
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.runtime.plans import sizes_of
from rtdecode.decode.runtime.torch_runner import DTYPES
from rtdecode.packs import EnginePack, open_pack
from rtdecode.publish.pictures import encoded

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
GOAL, FLOOR_GOAL, EXTRA_MS, GIB_GOAL = 20.0, 2.5, 10.0, 16.0
TUNED_S = 180.0
MESSAGE = "beta to encoded message, 2 steps"


def recipe(steps: int) -> Recipe:
    return PUBLISHED if steps == PUBLISHED.unclip_steps else replace(FEW, unclip_steps=steps)


def draw(mind: MindEye2, beta: Any) -> Any:
    hidden = mind.embed(beta)
    return mind.picture(hidden, mind.clean(hidden, seed=0), seed=0)


def message(mind: MindEye2, beta: Any) -> bytes:
    """All that a session does from a beta to the bytes that it sends."""
    hidden = mind.embed(beta)
    image = mind.image(hidden, mind.clean(hidden, seed=0), seed=0)
    assert image is not None
    sent = wire.Reconstruction(trial="t", image=encoded(image, "jpeg"))
    return b"".join(wire.pack(sent))


def parts_agree(pack: EnginePack) -> dict[str, dict[str, float]]:
    """Largest relative difference of each part on the device from the CPU in float32, by precision.

    Each precision that a part bears is run; see `engines.compile.precisions`.
    """
    found: dict[str, dict[str, float]] = {}
    for stage, described in parts_of(pack):
        right = reference(loaded(pack, stage, described.name), **sizes_of(pack))
        kind = pack.description.stage(stage).network
        for precision in PRECISIONS:
            if next(borne(kind, precision)) != precision:
                continue
            part = loaded(pack, stage, described.name)
            in_precision(part.module, precision)
            differences = [one.difference for one in compare_precision(right, part, precision)]
            found.setdefault(part.name, {})[precision] = max(differences)
            if not max(differences) <= tolerance_of(kind, precision):
                raise SystemExit(f"{part.name} in {precision} differs by {max(differences):.1e}: nothing is timed")
    return found


def kernels(action: Callable[[], object], device: str, trace: Path | None) -> dict[str, float]:
    """Time on the clock of one run, and within the kernels of the device, or the operations of the CPU."""
    action()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    waited(device)
    began = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        action()
        waited(device)
    wall_ms = 1e3 * (time.perf_counter() - began)
    which = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    inside = sum(getattr(one, which) for one in profile.key_averages()) / 1e3
    if trace is not None:
        profile.export_chrome_trace(str(trace))
    return {"wall_ms": wall_ms, "kernel_ms": inside}


def agreement(pack: EnginePack, device: str) -> float:
    """Largest difference of a small pack's picture on a device from the CPU's, both in float32."""
    minds = [MindEye2(load_stages(pack, device=where), recipe(2)) for where in ("cpu", device)]
    beta = np.random.default_rng(0).standard_normal(minds[0].voxels).astype(np.float32)
    expected, found = (draw(mind, beta) for mind in minds)
    difference = float(np.abs(found - expected).max())
    if not difference <= ALIKE:
        raise SystemExit(f"the picture differs by {difference:.1e} between {device} and CPU: nothing is timed")
    return difference


def at_side(
    stages: MindEye2Stages, side: int, beta: Any, times: int, device: str, trace: Path | None
) -> dict[str, Any]:
    """Time what one beta goes through, part by part and as a whole, at one size of the picture."""

    def timed(action: Callable[[], object], times: int = times) -> dict[str, float]:
        return time_it(action, times, device)

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
        "ridge and backbone": timed(lambda: mind.embed(beta)),
        "prior, 2 evaluations": timed(lambda: mind.clean(hidden, seed=0)),
        "caption": timed(lambda: mind.caption(tokens)),
    }
    whole = {}
    for steps in (*STEPS, PUBLISHED.unclip_steps):
        mind = MindEye2(stages, recipe(steps))
        runs = max(2, times // steps)
        parts[f"unCLIP and autoencoder, {steps} steps"] = timed(partial(mind.picture, hidden, tokens, seed=0), runs)
        whole[f"beta to picture, {steps} steps"] = timed(partial(draw, mind, beta), runs)
        if steps == 2:
            whole[MESSAGE] = timed(partial(message, mind, beta), runs)
            inside = kernels(partial(draw, mind, beta), device, trace)
    few, many = (whole[f"beta to picture, {steps} steps"]["median_ms"] for steps in (2, PUBLISHED.unclip_steps))
    return {"px": first.shape[-1], "parts": parts, "whole": whole, "few_against_38": many / few, "two_steps": inside}


def floors(pack: EnginePack, side: int, card: Card, bytes_a_weight: int) -> dict[str, float]:
    """Least ms from beta to picture at a size, by steps: two evaluations of the prior, the small autoencoder."""
    once = ("ridge", "backbone", "unclip_context", "small_autoencoder")
    return {
        f"beta to picture, {steps} steps": sum(
            least_ms(pack, {**dict.fromkeys(once, 1), "prior": 2, "unclip": steps}, side, card, bytes_a_weight).values()
        )
        for steps in STEPS
    }


def mindeye2(dims: str, precision: str | None, times: int, folder: Path, trace: Path | None) -> dict[str, Any]:
    """Time a pack of random weights in MindEye2's shapes."""
    write_fake_mindeye2(folder / "small", dims="small", stages=STAGES, precision="float32")
    small = open_pack(str(folder / "small"))
    backend = choose("torch", small)
    alike, by_part = agreement(small, backend.device), parts_agree(small)
    precision = precision or backend.precision
    card = measure(backend.device, DTYPES[precision])
    write_fake_mindeye2(folder / "pack", dims=dims, stages=STAGES, precision="float16", device=backend.device)
    pack = open_pack(str(folder / "pack"))
    began = time.perf_counter()
    stages = load_stages(pack, device=backend.device, precision=precision)
    load_s = time.perf_counter() - began
    beta = np.random.default_rng(0).standard_normal(stages.ridge[0].shape[1]).astype(np.float32)
    sides = SIDES if dims == "full" else (stages.latent_side,)
    gpu = torch.cuda.is_available()
    unclip = loaded(pack, "unclip", "unclip")
    return {
        "dims": dims,
        "backend": backend.name,
        "precision": precision,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "card": asdict(card),
        "difference_from_cpu": alike,
        "parts": by_part,
        "load_s": load_s,
        "sides": [
            {
                **at_side(stages, side, beta, times, backend.device, trace if side == sides[-1] else None),
                "floors": floors(pack, side, card, DTYPES[precision].itemsize),
            }
            for side in sides
        ],
        "moves": moves(unclip, backend.device, DTYPES[precision], max(2, times // 3), **{**sizes_of(pack), "batch": 1}),
        "finetune": tuning(pack, backend.device, 20 if gpu else 2),
        "peak_gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if gpu else None,
    }


def report(tiny: Sequence[Any], found: dict[str, Any]) -> None:
    rows = [[one["part"], f"{one['median_ms']:.2f}", f"{one['p99_ms']:.2f}"] for one in tiny]
    print_table("The shipped pack, ONNX Runtime, one CPU thread", ["part", "median ms", "p99 ms"], rows)
    card = found["card"]
    print(f"\nthe device: {card['flops_s'] / 1e12:.2f} TFLOP/s of products, {card['bytes_s'] / 1e9:.0f} GB/s of copies")
    rows = [[part, *(f"{one.get(name, np.nan):.1e}" for name in PRECISIONS)] for part, one in found["parts"].items()]
    print_table("Largest difference from the CPU in float32, small pack", ["part", *PRECISIONS], rows)
    run_by = f"{found['backend']} {found['precision']} on {found['gpu'] or 'the CPU'}"
    for side in found["sides"]:
        of = side["floors"]
        rows = [
            [name, f"{ms['median_ms']:.1f}", f"{ms['p99_ms']:.1f}", f"{of[name]:.1f}" if name in of else ""]
            for name, ms in {**side["parts"], **side["whole"]}.items()
        ]
        title = f"MindEye2 with random weights, {found['dims']} shapes, {side['px']} px, {run_by}"
        print_table(title, ["", "median ms", "p99 ms", "floor"], rows)
        print(f"\n2 steps against the published path: {side['few_against_38']:.1f} x (goal {GOAL:g} x)")
        floor, got = of["beta to picture, 2 steps"], side["whole"][MESSAGE]["median_ms"]
        print(f"{MESSAGE}: {got:.1f} ms, goal on a GPU {FLOOR_GOAL:g} x floor + {EXTRA_MS:g} ms: ", end="")
        print(f"{FLOOR_GOAL * floor + EXTRA_MS:.1f} ms")
        print("of {wall_ms:.1f} ms for a picture, profiled, {kernel_ms:.1f} are kernels".format(**side["two_steps"]))
    rows = [
        [one["move"], f"{one['median_ms']:.1f}", f"{one['difference']:.1e}"]
        if "median_ms" in one
        else [one["move"], "", one["skipped"]]
        for one in found["moves"]
    ]
    print_table("One step of the unCLIP at the pack's own size", ["", "median ms", "difference, or why not"], rows)
    tuned = found["finetune"]
    print(
        f"\nfine-tuning, rank 8, {tuned['batch']} of {TRIALS} trials a step: {tuned['steps_s']:.2f} steps/s; ", end=""
    )
    print(f"all trainings of a visit: {tuned['whole_s']:.0f} s (goal on a GPU {TUNED_S:g} s)")
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
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of one picture here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dims = arguments.dims or ("small" if arguments.quick else "full" if torch.cuda.is_available() else "cut")
    times = 2 if arguments.quick else 30 if torch.cuda.is_available() else 5
    tiny = [
        {"part": one.part, "median_ms": one.median_ms, "p99_ms": one.p99_ms}
        for one in time_pack(open_pack("tiny"), "onnx", threads=1, times=times)
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = mindeye2(dims, arguments.precision, times, Path(folder), arguments.trace)
    report(tiny, found)
    if arguments.json:
        write_json(arguments.json, {"tiny": tiny, "mindeye2": found, "gpu_owed": not torch.cuda.is_available()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
