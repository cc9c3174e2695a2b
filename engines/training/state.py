"""Moving averages and checkpoints of a training (torch). Import this module inside functions only.

A checkpoint is one safetensors file whose header holds the rest as JSON: it is replaced as a whole or not at all, and
reading it executes nothing.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rtdecode.errors import TrainingError

_HEADER = "training"
SCHEMA: Final = 1
"""Of the header of a checkpoint."""


class Standing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a training stands: the header of its checkpoint.

    Attributes
    ----------
    schema : int
        `SCHEMA`.
    plan : dict
        How the network is trained; see `engines.training.loop.Plan`.
    processes : int
    step : int
        The next one.
    seconds : float
        Over all resumptions.
    skipped : int
        Steps left out because loss or gradient was not finite.
    averaged : int or None
        Updates of the average of the weights, where there is one.
    """

    schema: Literal[1]
    plan: dict[str, Any]
    processes: int
    step: int
    seconds: float
    skipped: int
    averaged: int | None


class Ema:
    """Exponential moving average of a network's weights, itself a network.

    Parameters
    ----------
    module : Module
        What is averaged; it is copied.
    decay : float
        Weight of the past at each step; it is smaller early on, ``(1 + n) / (10 + n)`` at the most, so that the
        initial weights are soon forgotten.

    Attributes
    ----------
    module : Module
        The average, in evaluation mode.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._source = module
        self._decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    def update(self) -> None:
        """Take in the present weights; buffers are copied."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for average, present in zip(self.module.parameters(), self._source.parameters(), strict=True):
                average.lerp_(present.to(average.device), 1 - decay)
            for average, present in zip(self.module.buffers(), self._source.buffers(), strict=True):
                average.copy_(present)


def save_training(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, standing: Standing
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : Path
        The file; its folder is made when absent.
    module : Module
    optimizer : Optimizer
    ema : Ema or None
    standing : Standing
    """
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    # Tensors that share memory (a learned parameter used in every layer) are written once each.
    owned = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    save_file(owned, draft, metadata={_HEADER: msgspec.json.encode(standing).decode()})
    os.replace(draft, path)


def load_training(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, plan: dict[str, Any]
) -> Standing:
    """Read a checkpoint into its networks and the optimizer.

    Raises
    ------
    TrainingError
        The file cannot be read, or is of another plan or network; nothing was read into anything where the plan is
        another.
    """
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            standing = msgspec.json.decode(file.metadata()[_HEADER], type=Standing)
            _check_plan(path, standing.plan, plan)
            for name in file.keys():  # noqa: SIM118 - no mapping
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
        module.load_state_dict(groups["module"])
        if ema is not None:
            ema.module.load_state_dict(groups["ema"])
            ema.updates = standing.averaged or 0
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, SafetensorError, msgspec.MsgspecError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path}: not a checkpoint of this training ({error}); start anew without resume") from None
    return standing


def _check_plan(path: Path, got: dict[str, Any], expected: dict[str, Any]) -> None:
    wanted, found = _leaves(expected), _leaves(got)
    other = [
        f"{name}: expected {wanted.get(name)!r}, got {found.get(name)!r}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if other:
        raise TrainingError(
            f"{path}: a checkpoint of another training ({'; '.join(other)}); resume it as it was begun, or start anew "
            "without resume"
        )


def _leaves(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Values of nested mappings by their path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}
    return found
