"""The training loop: seeded, resumable, on one process or several (torch). Import this module inside functions only."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from engines.training.agreement import agreed
from engines.training.losses import half_cosine
from engines.training.state import SCHEMA, Ema, Standing, load_training, save_training
from rtdecode.errors import TrainingError

log = logging.getLogger(__name__)

_START_DIVISOR = 25.0
_END_DIVISOR = 1000.0
_LOG_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a network is trained; a checkpoint of another plan is refused.

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
    decay_biases : bool
        Biases decay as well.
    beta2 : float
        Adam's memory of squared gradients.
    clip_norm : float
        Longest gradient.
    patience : int
        So many steps in a row may be skipped because loss or gradient is not finite.
    seed : int
    save_every_s : float
        Of no consequence for the weights: the one thing that may be another when a training is resumed.
    details : mapping
        What else the weights depend on, such as the size of a batch; ready for JSON.
    """

    name: str
    steps: int
    rate: float
    warm_up: int = 50
    weight_decay: float = 0.01
    decay_biases: bool = False
    beta2: float = 0.999
    clip_norm: float = 1.0
    patience: int = 8
    seed: int = 0
    save_every_s: float = 60.0
    details: Mapping[str, Any] = field(default_factory=dict)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: half a cosine up to `rate`, half a cosine down (Smith & Topin 2019)."""
        low, end = self.rate / _START_DIVISOR, self.rate / _START_DIVISOR / _END_DIVISOR
        warm_up = min(self.warm_up, max(1, self.steps // 3))
        if step < warm_up:
            return half_cosine(low, self.rate, step / warm_up)
        return half_cosine(self.rate, end, (step - warm_up) / max(1, self.steps - warm_up))

    def seed_at(self, step: int, process: int) -> int:
        """Seed of what a process draws in a step."""
        words = np.random.SeedSequence([self.seed, zlib.crc32(self.name.encode()), step, process]).generate_state(2)
        return int(words[0]) << 30 ^ int(words[1])


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
        A step whose loss or gradient is not finite changes neither its parameters nor its buffers.
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
        The loss is not finite several times in a row, or the checkpoint is of another plan. Processes other than
        the first end; see `agreed`.
    """
    accelerator = accelerator or make_accelerator()
    path = folder / f"{plan.name}.safetensors"
    optimizer = torch.optim.AdamW(_groups(objective, plan), lr=plan.rate, betas=(0.9, plan.beta2))
    first, spent, skipped = 0, 0.0, 0
    own = {key: value for key, value in asdict(plan).items() if key != "save_every_s"}
    wanted = msgspec.json.decode(msgspec.json.encode(own))  # as a checkpoint has it
    with agreed(accelerator):
        if resume and path.exists():
            standing = load_training(path, objective, optimizer, ema, wanted)
            first, spent, skipped = standing.step, standing.seconds, standing.skipped
            before, here = standing.processes, accelerator.num_processes
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
                group["lr"] = plan.rate_at(step)
            seed = plan.seed_at(step, accelerator.process_index)
            draw = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed + 1)  # dropout
            buffers = [buffer.clone() for buffer in objective.buffers()]
            loss = model(send_to_device(batches(draw), accelerator.device), draw, step / plan.steps)
            finite = _step(accelerator, model, optimizer, loss, plan.clip_norm)
            if not finite:  # batch statistics and the like have seen what must not count
                for buffer, kept in zip(objective.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
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
                standing = Standing(
                    schema=SCHEMA,
                    plan=wanted,
                    processes=accelerator.num_processes,
                    step=step + 1,
                    seconds=spent + now - began,
                    skipped=skipped,
                    averaged=None if ema is None else ema.updates,
                )
                save_training(path, accelerator.unwrap_model(model), optimizer, ema, standing)
    objective.eval()
    return Fitted(seconds=round(spent + time.monotonic() - began, 1), skipped=skipped)


def make_accelerator(*, cpu: bool = False) -> Accelerator:
    """One device or several, as Accelerate was told, or the CPU; a step need not use every parameter."""
    return Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


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


def _groups(module: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """Parameters with decay, and biases without; as published, ridge layers decay whole."""
    if plan.decay_biases:
        return [{"params": list(module.parameters()), "weight_decay": plan.weight_decay}]
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    exempt = {name for name, _ in named if "bias" in name and "ridge." not in name}
    return [
        {"params": [value for name, value in named if name not in exempt], "weight_decay": plan.weight_decay},
        {"params": [value for name, value in named if name in exempt], "weight_decay": 0.0},
    ]
