"""What the device can do at best, measured, and what that makes the least time of each part of a decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rtdecode.decode.networks.build import empty
from rtdecode.decode.runtime.parts import Part, parts
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription

TIMES = 10
VOXELS = 15_724


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Multiplications and additions a second of a large product, and bytes a second read and written by a copy."""

    flops_s: float
    bytes_s: float


def waited(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def timed(action: Callable[[], object], times: int, device: str) -> dict[str, float]:
    """Median and 99 % quantile in ms, after a run that is not counted."""
    action()
    taken = []
    for _ in range(times):
        waited(device)
        began = time.perf_counter()
        action()
        waited(device)
        taken.append(1e3 * (time.perf_counter() - began))
    return {"median_ms": float(np.median(taken)), "p99_ms": float(np.quantile(taken, 0.99))}


def measure(device: str, dtype: torch.dtype) -> Card:
    """Measure a device: the better of two sizes of products, and copies far beyond its caches."""
    gpu = device != "cpu"
    flops = []
    for n in (4096, 8192) if gpu else (512, 1024):
        left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        taken = timed(lambda: left @ right, TIMES, device)  # noqa: B023
        flops.append(2 * n**3 / (taken["median_ms"] / 1e3))
    source = torch.empty((1 << 30) if gpu else (1 << 26), device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    taken = timed(lambda: target.copy_(source), TIMES, device)
    return Card(flops_s=max(flops), bytes_s=2 * source.nbytes / (taken["median_ms"] / 1e3))


def least_ms(
    pack: EnginePack, calls: Mapping[str, int], side: int, card: Card, bytes_a_weight: int
) -> dict[str, float]:
    """Least time of each part: its arithmetic or the reading of its weights once a call, whichever takes longer.

    Parameters
    ----------
    pack : EnginePack
    calls : mapping of str to int
        Parts, and how often each is called for a picture.
    side : int
        Of the latent.
    card : Card
    bytes_a_weight : int

    Returns
    -------
    dict of str to float
        ms for all calls of a part.
    """
    found = {}
    own = pack.description.size("unclip", "sample_size")
    for stage, spec in pack.description.stages.items():
        inputs = {name: [side if size == own else size for size in shape] for name, shape in spec.inputs.items()}
        at_side = msgspec.structs.replace(spec, inputs=inputs)
        for part in parts(stage, at_side, empty(spec.network, dict(spec.sizes))):
            if part.name in calls:
                flops, read = _work(part, pack.description, bytes_a_weight)
                found[part.name] = 1e3 * calls[part.name] * max(flops / card.flops_s, read / card.bytes_s)
    return found


def _work(part: Part, description: PackDescription, bytes_a_weight: int) -> tuple[int, int]:
    """Multiplications and additions of a call, and bytes of the weights that it reads."""
    module = part.module.to("meta")
    sizes = {"tokens": description.tokens.count, "voxels": VOXELS}
    given = {name: value.to("meta") for name, value in part.examples(0, batch=1, **sizes).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*given.values())
    weights = sum(one.numel() for one in module.parameters()) + sum(
        value.numel()
        for name, value in given.items()
        if name in ("weight", "bias")  # the ridge's are inputs
    )
    return counter.get_total_flops(), bytes_a_weight * weights
