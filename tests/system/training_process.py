"""One of several processes of a training: runs commands in turn and keeps the weights that each ends with.

    python -m tests.system.training_process FOLDER COMMANDS

COMMANDS is JSON: a list of name, step to be interrupted at or null, and words of an `rtdecode engines` command.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from engines.training import loop
from engines.training.state import Ema
from rtdecode.__main__ import main

PLAN = loop.Plan(name="line", steps=8, rate=1e-2, save_every_s=0.0)


class Line(torch.nn.Module):
    """Fits a line, with dropout and noise: what a step draws shows in the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.line = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))

    def forward(self, batch: torch.Tensor, draw: torch.Generator, progress: float) -> torch.Tensor:
        noise = 0.1 * torch.randn(len(batch), 1, generator=draw)
        error = self.line(batch) - batch.sum(1, keepdim=True) + noise
        return error.square().mean()


def batches(draw: torch.Generator) -> torch.Tensor:
    return torch.randn(8, 4, generator=draw)


def save_weights(path: Path, objective: torch.nn.Module, ema: Ema) -> None:
    named = [(f"module/{name}", value) for name, value in objective.named_parameters()]
    named += [(f"ema/{name}", value) for name, value in ema.module.named_parameters()]
    save_file({name: value.detach().clone() for name, value in named}, path)


def watched(
    objective: torch.nn.Module,
    draw_batch: Callable[[torch.Generator], Any],
    plan: loop.Plan,
    *,
    ema: Ema,
    weights: Path,
    stop_at: int | None,
    **how: Any,
) -> loop.Fitted:
    """`fit`, with a checkpoint at each step."""
    drawn = 0

    def interrupted(draw: torch.Generator) -> Any:
        nonlocal drawn
        if drawn == stop_at:
            raise KeyboardInterrupt
        drawn += 1
        return draw_batch(draw)

    fitted = loop.fit(objective, interrupted, replace(plan, save_every_s=0.0), ema=ema, **how)
    save_weights(weights, objective, ema)
    return fitted


def run(folder: Path, commands: list[tuple[str, int | None, list[str]]]) -> None:
    process = os.environ["RANK"]
    objective = Line()
    ema = Ema(objective, 0.9)
    loop.fit(objective, batches, PLAN, folder=folder / "line", resume=False, ema=ema)
    save_weights(folder / f"line-{process}.safetensors", objective, ema)
    codes = {}
    for name, stop_at, words in commands:
        fit = functools.partial(watched, weights=folder / f"{name}-{process}.safetensors", stop_at=stop_at)
        with (
            mock.patch("engines.training.multi_participant.fit", fit),
            mock.patch("engines.distill.consistency.fit", fit),
        ):
            try:
                codes[name] = main(["engines", *words])
            except SystemExit as ended:
                codes[name] = ended.code
        torch.distributed.barrier()  # the next command may read what the first process still writes
    (folder / f"codes-{process}.json").write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
