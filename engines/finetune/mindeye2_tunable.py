"""Backbone and prior of a MindEye2 pack as they are fine-tuned (torch). Import this module inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from safetensors.torch import save_file
from torch import Tensor

from engines.finetune.lora import add_low_rank, merged_state
from engines.finetune.tunable import Tunable, place
from engines.training.losses import add_noise
from engines.training.objective import Weights
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.networks.backbone import BackboneOutput
from rtdecode.decode.networks.build import load
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PACK_SCHEMA, write_description
from rtdecode.packs.sealed import seal

OWN = ("backbone", "prior")
WEIGHTS = Weights(low=0.0)
"""As published, without the low-level branch, which a visit has no targets for."""
_LOW_LEVEL = ("blin1", "bupsampler", "b_maps_projector")
_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the prior's noise levels, at which it is judged, as shares of all."""


class MindEye2Tunable(Tunable):
    """See the module.

    Parameters
    ----------
    pack : EnginePack
        With backbone and prior as `engines import` writes them.
    rank : int or None
        Of the additions; None: all weights are trained.
    """

    def __init__(self, pack: EnginePack, rank: int | None) -> None:
        said = pack.described(MindEye2Description)
        device, half = place()
        super().__init__(WEIGHTS, cosine_schedule(said.size("prior", "timesteps", 100)), half)
        self._pack, self._said = pack, said
        kept = torch.float32 if rank is None or half is None else half
        self.network, self.denoiser = (load(pack, name, device=device, dtype=kept) for name in OWN)
        if rank is None:
            self.train_all()
            for name, value in self.network.named_parameters():
                value.requires_grad_(not name.startswith(_LOW_LEVEL))
        else:
            added = [add_low_rank(self.network, rank, without=_LOW_LEVEL), add_low_rank(self.denoiser, rank)]
            self._low_rank = [layer for some in added for layer in some]

    def ridge(self, betas: Tensor, participant: int = 0) -> Tensor:  # noqa: ARG002 - one participant
        """Hidden values (n, 1, hidden)."""
        return betas[:, None]

    def backbone(self, hidden: Tensor) -> BackboneOutput:
        """Tokens and those for retrieval; no blurry latent."""
        found = self.network(hidden)
        return BackboneOutput(found.tokens, found.retrieval, None, None)

    def found(self, decoded: Tensor) -> Tensor:
        """See `Tunable.found`."""
        tokens: Tensor = self.read(decoded).retrieval.flatten(1)
        return tokens

    def errors(self, decoded: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of what the prior makes of noisy tokens of the pictures, mean over levels; noise is fixed."""
        condition = self.read(decoded).tokens.float()
        draw = torch.Generator().manual_seed(0)
        everyone = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        total = torch.zeros(len(tokens), device=tokens.device)
        for share in _LEVELS:
            t = torch.full((len(tokens),), int(share * self.schedule.timesteps), device=tokens.device)
            noise = torch.randn(tokens.shape, generator=draw).to(tokens)
            clean = self.prior(
                add_noise(self.schedule, tokens, t, noise), t, condition, keep_condition=everyone, keep_image=everyone
            )
            total += (clean - tokens).square().flatten(1).sum(1)
        return total / len(_LEVELS)

    def write_network(self, folder: Path, name: str) -> None:
        """Seal a pack with backbone and prior, in the precision of the pack that they are of."""

        def write(draft: Path) -> None:
            for stage, network in zip(OWN, (self.network, self.denoiser), strict=True):
                dtype = _DTYPES[self._said.precision or "float32"]
                state = {key: value.to(dtype) for key, value in merged_state(network).items()}
                save_file(state, draft / self._said.stage(stage).file)
            stages = {stage: self._said.stage(stage) for stage in OWN}
            own = structs.replace(
                self._said, name=name, stages=stages, parts={}, latents=None, participants=[], dropped=[]
            )
            write_description(draft, own)

        seal(folder, PACK_SCHEMA, write)


_DTYPES: dict[str, Any] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
