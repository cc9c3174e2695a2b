"""Trials of a pack's participants as its own networks read them (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.training.rows import FileRows
from rtdecode.decode.families.mindeye2.assembly import ridge_layer
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.recipe import recipe_of
from rtdecode.decode.networks.build import load
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.packs import EnginePack


class Trials:
    """Trials of participants, through ridge and backbone.

    Parameters
    ----------
    pack : EnginePack
    participants : sequence of (int, Path)
        Number of a ridge layer, and a safetensors file with ``betas`` and ``picture``.
    pictures : FileRows
        That `picture` refers to.
    device : torch.device

    Raises
    ------
    EngineError, TrainingError
        A file is not of this pack.
    """

    def __init__(
        self, pack: EnginePack, participants: Sequence[tuple[int, Path]], pictures: FileRows, device: torch.device
    ) -> None:
        self._device = device
        self._backbone, _ = network_of(pack, "backbone", device)
        self._people = [_person(pack, number, path, pictures, device) for number, path in participants]

    def take(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw trials of one participant: rows (n,) of what was shown, and the backbone's tokens (n, tokens, dim)."""
        trials, weight, bias = self._people[int(torch.randint(len(self._people), (1,), generator=draw))]
        at = torch.randint(len(trials), (n,), generator=draw)
        with torch.no_grad():
            hidden = functional.linear(trials.rows("betas", at).to(self._device), weight, bias)
            condition: Tensor = self._backbone(hidden[:, None]).tokens
        return trials.rows("picture", at), condition


class DecodedTokens:
    """Clean tokens as a pack's prior samples them from trials: what its unCLIP is given in a session.

    Parameters are those of `Trials`.
    """

    def __init__(
        self, pack: EnginePack, participants: Sequence[tuple[int, Path]], pictures: FileRows, device: torch.device
    ) -> None:
        self._trials = Trials(pack, participants, pictures, device)
        self._prior, sizes = network_of(pack, "prior", device)
        self._recipe = recipe_of(pack.described(MindEye2Description))
        schedule = cosine_schedule(int(sizes.get("timesteps", 100)))
        self._sampler = prior_sampler(self._recipe.prior_sampler, schedule, self._recipe.prior_steps)

    def take(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw trials: rows (n,) of what was shown, and clean tokens (n, tokens, dim)."""
        rows, condition = self._trials.take(n, draw)
        noise = torch.randn((self._sampler.draws, *condition.shape), generator=draw).to(condition)

        def predict(x: Tensor, t: int) -> Tensor:
            level = torch.full((n,), t, device=x.device)
            found: Tensor = self._prior.guided(x, level, condition, cond_scale=self._recipe.prior_guidance)
            return found

        with torch.no_grad():
            tokens: Tensor = self._sampler.sample(predict, list(noise))
        return rows, tokens


def network_of(pack: EnginePack, stage: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Load a pack's network in float32, and its sizes.

    Raises
    ------
    TrainingError
        The pack has no such stage with weights.
    """
    stages = pack.description.stages
    if stage not in stages or not stages[stage].network:
        raise TrainingError(
            f"pack {pack.name}: expected a stage {stage} with safetensors weights, as `engines import` writes; "
            f"it has {', '.join(stages)}"
        )
    where = "cpu" if device.type == "cpu" else str(device)  # safetensors refuses "cpu:0", which several processes have
    network = load(pack, stage, device=where, dtype=torch.float32)
    return network.eval(), stages[stage].sizes


def check_shape(table: FileRows, name: str, wanted: tuple[int, ...]) -> None:
    """Hold the rows of a tensor to a shape.

    Raises
    ------
    TrainingError
        They are of another.
    """
    if table.shape(name) != wanted:
        raise TrainingError(
            f"{table.path}: {name}: expected rows of shape {wanted} for this pack, got {table.shape(name)}"
        )


def _person(
    pack: EnginePack, number: int, path: Path, pictures: FileRows, device: torch.device
) -> tuple[FileRows, Tensor, Tensor]:
    """Trials of a participant, and weights and bias of the ridge layer."""
    trials = FileRows(path, {"betas": 2, "picture": 1})
    trials.refer("picture", pictures)
    weight, bias = (torch.from_numpy(part).to(device) for part in ridge_layer(pack, number))
    check_shape(trials, "betas", (weight.shape[1],))
    return trials, weight, bias
