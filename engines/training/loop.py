"""The training loop: seeded, resumable, on one process or several (torch). Import this module inside functions only."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from engines.training.agreement import agreed
from engines.training.losses import half_cosine
from engines.training.state import Ema, load_training, save_training
from rtdecode.errors import TrainingError

log = logging.getLogger(__name__)

_START_DIVISOR = 25.0
_END_DIVISOR = 1000.0
_LOG_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a network is trained.

    Attributes
    ----------
    name : str
        Of the stage, and of its checkpoint.
    steps : int
    rate : float
        Largest learning rate, reached after `warm_up` steps.
    warm_up : int
    weight_decay : float
        Of all parameters but biases.
    clip_norm : float
        Longest gradient.
    patience : int
        So many steps in a row may be skipped because loss or gradient is not finite.
    seed : int
    save_every_s : float
    """

    name: str
    steps: int
    rate: float
    warm_up: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    patience: int = 8
    seed: int = 0
    save_every_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a training took.

    Attributes
    ----------
    seconds : float
        Over all resumptions.
    skipped : int
        Steps left out because loss or gradient was not finite.
    """

    seconds: float
    skipped: int


def fit(
    objective: nn.Module,
    batches: Callable[[torch.Generator], Any],
    plan: Plan,
    *,
    folder: Path,
    resume: bool,
    ema: Ema | None = None,
    accelerator: Accelerator | None = None,
) -> Fitted:
    """Train what `objective` holds.

    Parameters
    ----------
    objective : Module
        Called with a batch, a generator and the fraction of the steps that is done, it returns the loss, a float32
        scalar. Its parameters are what is trained; networks that are not trained it must hold outside its own modules.
    batches : callable
        Draws a batch, a nest of tensors, with the generator of the step.
    plan : Plan
    folder : Path
        Of the checkpoint ``<name>.safetensors``, which the first process writes and all read.
    resume : bool
        Go on from the checkpoint where there is one; otherwise it is overwritten.
    ema : Ema, optional
        Updated after each step.
    accelerator : Accelerator, optional
        By default `make_accelerator`'s. The batch of a step depends on seed, name, step and
        process alone, so that a training resumed with as many processes equals an uninterrupted one. Gradients are
        averaged over the processes.

    Raises
    ------
    TrainingError
        The loss is not finite several times in a row, or the checkpoint is of another training. Processes other than
        the first end; see `agreed`.
    """
    accelerator = accelerator or make_accelerator()
    path = folder / f"{plan.name}.safetensors"
    optimizer = torch.optim.AdamW(_groups(objective, plan.weight_decay), lr=plan.rate, betas=(0.9, 0.999))
    first, spent, skipped = 0, 0.0, 0
    wanted = {key: value for key, value in asdict(plan).items() if key != "save_every_s"}
    with agreed(accelerator):
        if resume and path.exists():
            facts = load_training(path, objective, optimizer, ema)
            if facts["plan"] != wanted:
                raise TrainingError(f"{path}: expected a checkpoint of {wanted}, got {facts['plan']}; start anew")
            first, spent, skipped = facts["step"], facts["seconds"], facts["skipped"]
            here = accelerator.num_processes
            before = facts.get("processes", here)
            if before != here and accelerator.is_main_process:
                log.warning("%s: %d processes go on where %d left off, with batches of their own", path, here, before)
    model, optimizer = accelerator.prepare(objective, optimizer)
    if ema is not None:
        ema.module.to(accelerator.device)
    model.train()
    began = saved_at = time.monotonic()
    bad = 0
    columns = [*Progress.get_default_columns(), TextColumn("{task.fields[loss]}")]
    with Progress(*columns, disable=not accelerator.is_main_process) as progress:
        task = progress.add_task(plan.name, total=plan.steps, completed=first, loss="")
        for step in range(first, plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(plan, step)
            draw = torch.Generator().manual_seed(_seed(plan, step, accelerator.process_index))
            torch.manual_seed(_seed(plan, step, accelerator.process_index) + 1)  # dropout
            loss = model(send_to_device(batches(draw), accelerator.device), draw, step / plan.steps)
            finite = _step(accelerator, model, optimizer, loss, plan.clip_norm)
            skipped += not finite
            bad = 0 if finite else bad + 1
            if bad > plan.patience:
                with agreed(accelerator):
                    raise TrainingError(
                        f"{plan.name}: expected a finite loss, got none at {bad} steps in a row (step {step} of "
                        f"{plan.steps}); lower the learning rate ({plan.rate:g}) or resume from an earlier checkpoint"
                    )
            if finite and ema is not None:
                ema.update()
            progress.update(task, advance=1, loss=f"{loss.item():.4f}")
            if step % _LOG_EVERY == 0 and accelerator.is_main_process:
                log.info("%s %d/%d loss %.4f", plan.name, step, plan.steps, loss.item())
            now = time.monotonic()
            if accelerator.is_main_process and (now - saved_at > plan.save_every_s or step == plan.steps - 1):
                saved_at = now
                facts = {
                    "plan": wanted,
                    "processes": accelerator.num_processes,
                    "step": step + 1,
                    "seconds": spent + now - began,
                    "skipped": skipped,
                }
                save_training(path, accelerator.unwrap_model(model), optimizer, ema, facts)
    objective.eval()
    return Fitted(seconds=round(spent + time.monotonic() - began, 1), skipped=skipped)


def make_accelerator(*, cpu: bool = False) -> Accelerator:
    """One device or several, as Accelerate was told, or the CPU; a step need not use every parameter."""
    return Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def one_cycle(plan: Plan, step: int) -> float:
    """Learning rate of a step: half a cosine up to ``plan.rate``, half a cosine down (Smith & Topin 2019)."""
    low, end = plan.rate / _START_DIVISOR, plan.rate / _START_DIVISOR / _END_DIVISOR
    warm_up = min(plan.warm_up, max(1, plan.steps // 3))
    if step < warm_up:
        return half_cosine(low, plan.rate, step / warm_up)
    return half_cosine(plan.rate, end, (step - warm_up) / max(1, plan.steps - warm_up))


def _step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float
) -> bool:
    """Update the weights, unless loss or gradient is not finite in any process."""
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    fine = torch.isfinite(loss.detach()) & torch.isfinite(torch.as_tensor(norm, device=loss.device))
    finite = bool(accelerator.gather(fine.reshape(1)).all())
    if finite:
        optimizer.step()
    return finite


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with decay, and biases without; as published, ridge layers decay whole."""
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    exempt = {name for name, _ in named if "bias" in name and "ridge." not in name}
    return [
        {"params": [value for name, value in named if name not in exempt], "weight_decay": weight_decay},
        {"params": [value for name, value in named if name in exempt], "weight_decay": 0.0},
    ]


def _seed(plan: Plan, step: int, process: int) -> int:
    words = np.random.SeedSequence([plan.seed, zlib.crc32(plan.name.encode()), step, process]).generate_state(2)
    return int(words[0]) << 30 ^ int(words[1])
