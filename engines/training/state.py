"""Moving averages and checkpoints of a training (torch). Import this module inside functions only.

A checkpoint is one safetensors file whose header holds the rest as JSON: it is replaced as a whole or not at all, and
reading it executes nothing.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rtdecode.errors import TrainingError

_HEADER = "training"


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
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, facts: Mapping[str, Any]
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : Path
        The file; its folder is made when absent.
    module : Module
    optimizer : Optimizer
    ema : Ema or None
    facts : mapping
        What JSON can hold: step, seconds, seed and the like.
    """
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in state.items()}
    header = {**facts, "ema_updates": None if ema is None else ema.updates}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    # Tensors that share memory (a learned parameter used in every layer) are written once each.
    owned = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    save_file(owned, draft, metadata={_HEADER: json.dumps(header)})
    os.replace(draft, path)


def load_training(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> dict[str, Any]:
    """Read a checkpoint into its networks and the optimizer.

    Returns
    -------
    dict
        The facts that were saved with it.

    Raises
    ------
    TrainingError
        The file cannot be read, or belongs to another network.
    """
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()[_HEADER])
            for name in file.keys():  # noqa: SIM118 - no mapping
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
        module.load_state_dict(groups["module"])
        if ema is not None:
            ema.module.load_state_dict(groups["ema"])
            ema.updates = int(facts["ema_updates"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(f"{path}: not a checkpoint of this training ({error}); start anew without resume") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
