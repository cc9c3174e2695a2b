"""Trials of a pack's participants as its own networks read them (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

Choose = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Rows of pictures to those of them that are held out."""


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
    choose : callable
        Of the rows shown, those that are held out: their trials are not drawn.

    Raises
    ------
    EngineError, TrainingError
        A file is not of this pack.
    """

    def __init__(
        self,
        pack: EnginePack,
        participants: Sequence[tuple[int, Path]],
        pictures: FileRows,
        device: torch.device,
        choose: Choose,
    ) -> None:
        self._device = device
        self._backbone, _ = network_of(pack, "backbone", device)
        self._people = [_person(pack, number, path, pictures, device) for number, path in participants]
        shown = [trials.refer("picture", pictures).numpy() for trials, _, _ in self._people]
        self.held_out = choose(np.concatenate(shown))
        apart = [np.isin(rows, self.held_out) for rows in shown]
        self._drawn = [torch.from_numpy(np.flatnonzero(~held)) for held in apart]
        self._first: dict[int, tuple[int, int]] = {}
        for person, (rows, held) in enumerate(zip(shown, apart, strict=True)):
            for trial in np.flatnonzero(held).tolist():
                self._first.setdefault(int(rows[trial]), (person, trial))

    def take(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw trials of one participant: rows (n,) of what was shown, and the backbone's tokens (n, tokens, dim)."""
        number = int(torch.randint(len(self._people), (1,), generator=draw))
        drawn = self._drawn[number]
        at = drawn[torch.randint(len(drawn), (n,), generator=draw)]
        return self._people[number][0].rows("picture", at), self._read(number, at)

    def judged(self) -> tuple[Tensor, Tensor]:
        """One trial of each held-out picture: rows (n,) of these, and the backbone's tokens (n, tokens, dim)."""
        read = [self._read(person, torch.tensor([trial])) for person, trial in self._first.values()]
        return torch.tensor(list(self._first)), torch.cat(read)

    def _read(self, number: int, at: Tensor) -> Tensor:
        trials, weight, bias = self._people[number]
        with torch.no_grad():
            hidden = functional.linear(trials.rows("betas", at).to(self._device), weight, bias)
            tokens: Tensor = self._backbone(hidden[:, None]).tokens
        return tokens


class DecodedTokens:
    """Clean tokens as a pack's prior samples them from trials: what its unCLIP is given in a session.

    Parameters are those of `Trials`.
    """

    def __init__(
        self,
        pack: EnginePack,
        participants: Sequence[tuple[int, Path]],
        pictures: FileRows,
        device: torch.device,
        choose: Choose,
    ) -> None:
        self.trials = Trials(pack, participants, pictures, device, choose)
        self._prior, sizes = network_of(pack, "prior", device)
        self._recipe = recipe_of(pack.described(MindEye2Description))
        schedule = cosine_schedule(int(sizes.get("timesteps", 100)))
        self._sampler = prior_sampler(self._recipe.prior_sampler, schedule, self._recipe.prior_steps)

    def take(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw trials: rows (n,) of what was shown, and clean tokens (n, tokens, dim)."""
        rows, condition = self.trials.take(n, draw)
        return rows, self._clean(condition, draw)

    def judged(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """One trial of each held-out picture: rows (n,) of these, and clean tokens (n, tokens, dim)."""
        rows, condition = self.trials.judged()
        return rows, self._clean(condition, draw)

    def _clean(self, condition: Tensor, draw: torch.Generator) -> Tensor:
        noise = torch.randn((self._sampler.draws, *condition.shape), generator=draw).to(condition)

        def predict(x: Tensor, t: int) -> Tensor:
            level = torch.full((len(x),), t, device=x.device)
            found: Tensor = self._prior.guided(x, level, condition, cond_scale=self._recipe.prior_guidance)
            return found

        with torch.no_grad():
            tokens: Tensor = self._sampler.sample(predict, list(noise))
        return tokens


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
