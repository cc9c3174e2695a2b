"""A MindEye1 network that takes up a new participant (torch). Import this module inside functions only.

The brain network of a published participant reads voxels that nobody else has. So it gets a new first layer: the
visit's adapter decodes tokens, and the pack's map (`engines latents`) says what the published participant's first layer
gives for pictures of such tokens. Both are linear, and become one layer of the participant's own voxels. It is
fine-tuned with the rest and the prior. It has to be better than the adapter's tokens alone, which pictures are drawn of
without a network.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.finetune.lora import add_low_rank, merged_state
from engines.finetune.tunable import Tunable, place
from engines.importing.mindeye1_files import add_scaling
from engines.training.mindeye1_objective import MindEye1Weights
from engines.training.mindeye1_training import draft_networks
from engines.training.objective import Weights
from rtdecode.decode.families.latent_map import latent_map
from rtdecode.decode.families.mindeye1.mindeye1_description import FIRST_LAYER, MindEye1Description
from rtdecode.decode.networks.backbone import BackboneOutput
from rtdecode.decode.networks.build import empty, load
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.decode.score.adapter import Adapter
from rtdecode.packs import EnginePack

WEIGHTS = Weights(prior=MindEye1Weights().prior, low=0.0)
"""As published, without the low level, which a visit has no targets for."""
_DRAWS = 4
"""Of noise, over which the clean tokens that the prior expects are averaged."""


class MindEye1Tunable(Tunable):
    """See the module.

    Parameters
    ----------
    pack : EnginePack
        With brain and prior of a published participant, as `engines import` writes them.
    adapter : Adapter
        Of the visit's bundle, whose voxels the network is sealed for.
    voxels : int
        Of the mask.
    rank : int or None
        Of the additions; None: all weights are trained.

    Raises
    ------
    EngineError
        The pack has no map.
    """

    def __init__(self, pack: EnginePack, adapter: Adapter, voxels: int, rank: int | None) -> None:
        said = pack.described(MindEye1Description)
        device, half = place()
        super().__init__(WEIGHTS, cosine_schedule(said.size("prior", "timesteps", 100)), half)
        self._said, self._adapter, self._voxels = said, adapter, voxels
        self._map = latent_map(pack)
        kept = torch.float32 if rank is None or half is None else half
        self.brain, self.denoiser = (load(pack, name, device=device, dtype=kept) for name in ("brain", "prior"))
        self._shapes = self.brain.shape, self.denoiser.shape
        self.first: nn.Linear | None = None
        self._alone = True
        if rank is None:
            self.train_all()
            self.brain.get_submodule(FIRST_LAYER).requires_grad_(False)
        else:
            added = [add_low_rank(self.brain, rank, without=("lin0",)), add_low_rank(self.denoiser, rank)]
            self._low_rank = [layer for some in added for layer in some]

    def begin(self, adapter: Adapter, draw: torch.Generator) -> None:
        """See `Tunable.begin`."""
        self.first = None
        super().begin(adapter, draw)
        self._alone = True
        device, count = self.device, len(adapter.basis)
        self.token_mean = torch.from_numpy(adapter.token_mean).to(device)
        self.into_components = torch.from_numpy(_into_components(adapter)).to(device)
        first = nn.Linear(count, self._shapes[0].hidden, device=device)
        bias = self._map(adapter.token_mean[None, None])[0]
        with torch.no_grad():
            first.weight.copy_(torch.from_numpy((self._map((adapter.basis + adapter.token_mean)[:, None]) - bias).T))
            first.bias.copy_(torch.from_numpy(bias))
        self.first = first

    def leave_start(self) -> None:
        """Decode by the network from now on."""
        self._alone = False

    def ridge(self, betas: Tensor, participant: int = 0) -> Tensor:  # noqa: ARG002 - one participant
        """Values (n, hidden) of the first layer, of the adapter's tokens."""
        assert self.first is not None
        values: Tensor = self.first((betas - self.token_mean) @ self.into_components)
        return values

    def backbone(self, hidden: Tensor) -> BackboneOutput:
        """Tokens and those for retrieval, of the values of the first layer."""
        tokens, retrieval = self.brain.after_first(hidden)
        return BackboneOutput(tokens, retrieval, None, None)

    def targets(self, tokens: Tensor) -> Tensor:
        """Tokens times the root of their width, which the prior is trained on."""
        return tokens * tokens.shape[2] ** 0.5

    def found(self, decoded: Tensor) -> Tensor:
        """See `Tunable.found`."""
        if self._alone:
            return decoded
        tokens: Tensor = self.read(decoded).retrieval.float().flatten(1)
        return tokens

    def errors(self, decoded: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the clean tokens that the prior expects, knowing the beta alone; noise is fixed."""
        if self._alone:
            return (decoded - tokens.flatten(1)).square().sum(1)
        condition = self.read(decoded).tokens.float()
        draw = torch.Generator().manual_seed(0)
        everyone = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        last = torch.full((len(tokens),), self.schedule.timesteps - 1, device=tokens.device)
        total = torch.zeros_like(tokens)
        for _ in range(_DRAWS):
            noise = torch.randn(tokens.shape, generator=draw).to(tokens)
            total += self.prior(noise, last, condition, keep_condition=everyone, keep_image=everyone)
        return (total / _DRAWS / tokens.shape[2] ** 0.5 - tokens).square().flatten(1).sum(1)

    def write_network(self, folder: Path, name: str) -> None:
        """Seal a pack with the brain network of the participant's voxels and its prior."""
        brain_shape, prior_shape = self._shapes
        weight, bias = self._own_first()
        state = merged_state(self.brain) | {f"{FIRST_LAYER}.weight": weight, f"{FIRST_LAYER}.bias": bias}
        brain = empty("brain", asdict(replace(brain_shape, voxels=self._voxels)))
        brain.load_state_dict(state, assign=True)
        prior = empty("prior", asdict(prior_shape))
        prior.load_state_dict(merged_state(self.denoiser), assign=True)
        draft = draft_networks(brain, prior, None)
        scaling = {"mean": torch.zeros(self._voxels), "scale": torch.ones(self._voxels)}
        for key, values in scaling.items():
            values[torch.from_numpy(self._adapter.voxels)] = torch.from_numpy(getattr(self._adapter, key))
        with TemporaryDirectory() as scratch:
            save_file(scaling, Path(scratch) / "scaling.safetensors")
            add_scaling(draft, Path(scratch) / "scaling.safetensors")
        draft.seal(folder, name=name, licence=self._said.licence, precision=self._said.precision or "float32")

    def _own_first(self) -> tuple[Tensor, Tensor]:
        """Weights (hidden, voxels) and bias (hidden,) of adapter and first layer in one, on standardised betas."""
        assert self.first is not None
        adapter, into = self._adapter, self.into_components.cpu()
        first, bias = self.first.weight.detach().cpu(), self.first.bias.detach().cpu()
        between = torch.from_numpy(adapter.basis) @ into
        weight = torch.zeros(len(first), self._voxels)
        weight[:, torch.from_numpy(adapter.voxels)] = (torch.from_numpy(adapter.weights) @ between @ first.T).T
        shift = torch.from_numpy(adapter.token_mean) - self.token_mean.cpu()
        moved = torch.from_numpy(adapter.intercept) @ between + shift @ into
        return weight, bias + first @ moved


def _into_components(adapter: Adapter) -> NDArray[np.float32]:
    """Make what gives components (k,) of tokens (m,) about their mean: (m, k)."""
    return np.ascontiguousarray((adapter.basis / np.square(adapter.basis).sum(1, keepdims=True)).T, np.float32)
