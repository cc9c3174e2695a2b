"""What may make a part faster on a device: each beside the part as it is, with the difference that it makes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _card import timed, waited
from torch import Tensor, nn

from calibration.cross_fitting import Crossed
from engines.finetune.mindeye2_tunable import MindEye2Tunable
from engines.finetune.training import Tuning, train
from rtdecode.decode.runtime.parts import Part
from rtdecode.packs import EnginePack

TRIALS = 240
TRAININGS = 5
"""Of one fine-tuning: one for each set of trials that is set apart, and one on all."""
_FP8, _LARGEST = torch.float8_e4m3fn, 448.0
_OF_FP8 = (8, 9)
"""Compute capability from which products of FP8 are there."""


class Fp8Linear(nn.Module):
    """A linear layer whose product is of FP8, weights and inputs scaled each as a whole."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.scale, self.packed = _packed(base.weight.detach())

    @property
    def weight(self) -> Tensor:
        """Weights as they were, of which networks ask the precision."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        scale, packed = _packed(x.reshape(-1, x.shape[-1]))
        found = torch._scaled_mm(packed, self.packed.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16)
        found = found.to(x.dtype).reshape(*x.shape[:-1], -1)
        return found if self.base.bias is None else found + self.base.bias


def _packed(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = (values.abs().amax().float() / _LARGEST).clamp_min(1e-12)
    return scale, (values.float() / scale).clamp(-_LARGEST, _LARGEST).to(_FP8).contiguous()


def with_fp8(module: nn.Module) -> nn.Module:
    """Replace every linear layer whose sizes the product takes: multiples of 16."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.in_features % 16 == 0 and layer.out_features % 16 == 0:
                setattr(parent, name, Fp8Linear(layer))
    return module


def with_channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def compiled(module: nn.Module) -> nn.Module:
    made: nn.Module = torch.compile(module, dynamic=False)
    return made


def _no_compiler(device: str) -> str:
    return "no GPU: for a CPU it would write and build C++ for minutes" if device == "cpu" else ""


def _no_fp8(device: str) -> str:
    if device == "cpu" or torch.cuda.get_device_capability() >= _OF_FP8:
        return ""  # a CPU takes long over it, but its numbers are those of the card
    return f"the card has capability {torch.cuda.get_device_capability()}, products of FP8 want {_OF_FP8}"


MOVES: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[str], str]]] = {
    "channels_last": (with_channels_last, lambda _: ""),
    "torch.compile": (compiled, _no_compiler),
    "FP8 linears": (with_fp8, _no_fp8),
}


def moves(part: Part, device: str, dtype: torch.dtype, times: int, **sizes: int) -> list[dict[str, Any]]:
    """Time one call of a part, as it is and after each move; a move that cannot be made tells why."""
    given = [
        value.to(device, dtype if value.is_floating_point() else value.dtype)
        for value in part.examples(0, **sizes).values()
    ]
    plain = part.module.eval().to(device, dtype)
    with torch.no_grad():
        right = plain(*given)
        rows = [{"move": "as it is", "difference": 0.0, **timed(lambda: plain(*given), times, device)}]
        for name, (change, cannot) in MOVES.items():
            if why := cannot(device):
                rows.append({"move": name, "skipped": why})
                continue
            try:
                changed = change(copy.deepcopy(plain))
                found = changed(*given)
                took = timed(lambda changed=changed: changed(*given), times, device)
            except Exception as error:  # compilers raise whatever they like, and the card is lent for one run
                rows.append({"move": name, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                continue
            rows.append({"move": name, "difference": difference(found, right), **took})
    return rows


def difference(found: Any, right: Any) -> float:
    """Largest difference over all outputs, each over its largest value."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in zip(found, right, strict=True)
    )


def tuning(pack: EnginePack, device: str, steps: int) -> dict[str, float]:
    """Fine-tune on as many random trials as a long visit has; tell steps a second."""
    said = pack.description
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((TRIALS, said.size("backbone", "hidden")), dtype=np.float32)
    tokens = torch.from_numpy(
        rng.standard_normal((TRIALS, said.tokens.count, said.tokens.channels), dtype=np.float32)
    ).to(device)
    crossed = Crossed(
        rows=np.arange(TRIALS),
        decoded=hidden,
        adapter=SimpleNamespace(group_r2=np.zeros(1)),  # type: ignore[arg-type]
        apart=np.zeros(0, np.int64),
        apart_decoded=hidden[:0],
    )
    network, how = MindEye2Tunable(pack, rank=8), Tuning()
    train(network, crossed, np.arange(TRIALS), tokens, how, number=0, last=1)
    waited(device)
    began = time.perf_counter()
    train(network, crossed, np.arange(TRIALS), tokens, how, number=0, last=steps)
    waited(device)
    rate = steps / (time.perf_counter() - began)
    return {"steps_s": rate, "whole_s": TRAININGS * how.steps / rate, "batch": how.batch}
