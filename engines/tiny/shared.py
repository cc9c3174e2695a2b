"""The part that all participants share, and the stage that trains it (torch). Import inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engines.tiny import layout
from engines.tiny.conditions import filled_tokens, hard_code
from engines.tiny.participants import SimulatedParticipant, simulate_participants, trial_batches
from engines.tiny.precision import half_precision
from engines.tiny.tiny_prior import DiffusionPrior, prior_schedule
from engines.tiny.train import Trained
from engines.training.loop import Fitted, Plan, fit, make_accelerator
from engines.training.objective import MindEye2Objective, Weights
from engines.training.shared_model import SharedModel, Trials
from engines.training.state import Ema
from rtdecode.decode.networks.backbone import BackboneShape

SHARED = Plan(name="shared", steps=600, rate=1.5e-3)
HIDDEN = 256
TRIALS_EACH = 12
EXTRA = 64
_EMA = 0.998
_R2_MEMORY = 0.98
_ANCHOR = 30.0


class SharedTiny(SharedModel):
    """MindEye2's shared part at the tiny pack's size.

    The mixer blocks, which cannot reach the output, are left out. Tokens are standardised as the prior's.

    Parameters
    ----------
    voxels : sequence of int
        Of each participant.
    trained : Trained
        Its commitment network turns the backbone's tokens into the prior's condition; it stays as it is.
    """

    def __init__(self, voxels: Sequence[int], trained: Trained) -> None:
        prior = DiffusionPrior()
        prior.set_statistics(trained.tokens)
        shape = BackboneShape(hidden=HIDDEN, tokens=layout.TOKENS, dim=layout.CHANNELS, blocks=0)
        super().__init__(voxels, shape, prior)
        self.register_buffer("r2", torch.full((len(voxels), 2), 0.3))
        self._trained = (trained,)

    @property
    def diffusion(self) -> DiffusionPrior:
        """The prior."""
        network = self.diffusion_prior["net"]
        assert isinstance(network, DiffusionPrior)
        return network

    def prior(
        self, noisy: Tensor, t: Tensor, condition: Tensor, *, keep_condition: Tensor, keep_image: Tensor
    ) -> Tensor:
        """Clean tokens."""
        return self.diffusion.clean(noisy, t, condition, keep_condition=keep_condition, keep_image=keep_image)

    def condition(self, tokens: Tensor, trials: Sequence[Trials]) -> Tensor:
        """Commit the backbone's tokens to the true code."""
        (trained,) = self._trained
        natural = self.diffusion.natural(tokens)
        truth = torch.cat([self.diffusion.natural(t.tokens) for t in trials])
        sizes = [len(t.tokens) for t in trials]
        people = [t.participant for t in trials]
        if self.training:
            self._note_r2(natural.detach().split(sizes), truth.split(sizes), people)
        r2 = torch.cat([self.r2[person].expand(n, 2) for person, n in zip(people, sizes, strict=True)])
        codes = torch.from_numpy(trained.sample.codes)[torch.cat([t.rows for t in trials])]
        seen, spatial = trained.prior.see(natural, r2)
        code = hard_code(truth, codes)
        return self.diffusion.standard(trained.prior.compose(code, trained.prior.fill(seen, spatial, code)))

    def extra(self, draw: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Conditions of brains not simulated: tokens shrunk and noised at any R2."""
        (trained,) = self._trained
        rows = torch.randint(len(trained.tokens), (EXTRA,), generator=draw)
        clean = trained.tokens[rows]
        codes = torch.from_numpy(trained.sample.codes)[rows]
        given = filled_tokens(trained.prior, trained.noise, clean, codes, draw)
        return self.diffusion.standard(given), self.diffusion.standard(clean)

    def _note_r2(self, given: Sequence[Tensor], truth: Sequence[Tensor], people: Sequence[int]) -> None:
        """Follow each participant's explained variance of both token groups."""
        for tokens, true, person in zip(given, truth, people, strict=True):
            for i, group in enumerate((slice(0, layout.SEMANTIC_TOKENS), slice(layout.SEMANTIC_TOKENS, None))):
                missed = (tokens[:, group] - true[:, group]).square().sum()
                total = (true[:, group] - self.diffusion.mean[group]).square().sum()
                r2 = (1 - missed / total).clamp(0.02, 0.98)
                self.r2[person, i] = _R2_MEMORY * self.r2[person, i] + (1 - _R2_MEMORY) * r2


def train_shared(
    trained: Trained, folder: Path, plan: Plan, *, resume: bool
) -> tuple[SharedTiny, list[SimulatedParticipant], Fitted]:
    """Train the shared part on several participants; returns the average of its weights, and the participants."""
    people = simulate_participants(trained.sample, plan.seed)
    torch.manual_seed(plan.seed + 3)
    model = SharedTiny([person.evoked.shape[1] for person in people], trained)
    tokens = model.diffusion.standard(trained.tokens)
    ema = Ema(model, _EMA)
    fitted = fit(
        MindEye2Objective(model, prior_schedule(), Weights(anchor=_ANCHOR), half_precision()),
        trial_batches(people, trained.sample, tokens, trained.critic, TRIALS_EACH),
        plan,
        folder=folder,
        resume=resume,
        ema=ema,
        accelerator=make_accelerator(cpu=True),
    )
    assert isinstance(ema.module, SharedTiny)
    return ema.module, people, fitted


def mean_r2(model: SharedTiny) -> list[list[float]]:
    """Explained variance of semantic and spatial tokens, by participant."""
    return [[round(float(value), 3) for value in row] for row in model.r2]
