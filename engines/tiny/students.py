"""Stages that distil prior and unCLIP of the tiny pack into few steps (torch). Import inside functions only."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.distill.consistency import Distillation, distil
from engines.tiny.conditions import given_tokens
from engines.tiny.diffusion import TinyAutoencoder, TinyUnclip
from engines.tiny.participants import SimulatedParticipant, trial_batches
from engines.tiny.pictures import draft_latents
from engines.tiny.precision import autocast
from engines.tiny.shared import TRIALS_EACH, SharedTiny
from engines.tiny.tiny_prior import DiffusionPrior, prior_schedule
from engines.tiny.train import Trained
from engines.training.loop import Fitted, Plan, make_accelerator
from rtdecode.decode.sampling.edm import guide, network_alphas_cumprod

PRIOR = Plan(name="prior_student", steps=400, rate=3e-4)
UNCLIP = Plan(name="unclip_student", steps=450, rate=3e-4)
GUIDANCE = 1.5
_PRIOR_SKIP = 10
_UNCLIP_SKIP = 100
_UNCLIP_BATCH = 16


def distil_prior(
    model: SharedTiny,
    trained: Trained,
    people: list[SimulatedParticipant],
    folder: Path,
    plan: Plan,
    *,
    resume: bool,
) -> tuple[DiffusionPrior, Fitted]:
    """Distil the prior on the participants' own tokens and on those of brains not simulated."""
    teacher = model.diffusion.eval()
    tokens = teacher.standard(trained.tokens)
    draw_trials = trial_batches(people, trained.sample, tokens, None, TRIALS_EACH)

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        trials = draw_trials(draw)
        extra = model.extra(draw)
        assert extra is not None
        with torch.no_grad():
            hidden = torch.cat([model.ridge(t.betas, t.participant) for t in trials])
            read = model.backbone.backbone_linear(hidden.flatten(1)).unflatten(1, tokens.shape[1:])
            given = model.condition(read, trials)
        clean = torch.cat([*(t.tokens for t in trials), extra[1]])
        return clean, torch.cat([given, extra[0]])

    student, fitted = distil(
        copy.deepcopy(teacher).train().requires_grad_(True),
        batches,
        predict=lambda network, noisy, t, given: network.clean(noisy, t, given),
        teacher=teacher.clean,
        alphas_cumprod=prior_schedule().alphas_cumprod,
        how=Distillation(skip=_PRIOR_SKIP),
        plan=plan,
        folder=folder,
        resume=resume,
        accelerator=make_accelerator(cpu=True),
    )
    assert isinstance(student, DiffusionPrior)
    return student, fitted


def distil_unclip(
    teacher: TinyUnclip,
    autoencoder: TinyAutoencoder,
    latents: Tensor,
    trained: Trained,
    folder: Path,
    plan: Plan,
    *,
    resume: bool,
) -> tuple[TinyUnclip, Fitted]:
    """Distil the unCLIP with its guidance against the fixed unconditional tokens."""
    teacher = teacher.eval()

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        rows = torch.randint(len(latents), (_UNCLIP_BATCH,), generator=draw)
        codes = torch.from_numpy(trained.sample.codes)[rows]
        tokens = given_tokens(trained.prior, trained.noise, trained.tokens[rows], codes, draw)
        return latents[rows], (draft_latents(trained, autoencoder, tokens), tokens)

    student, fitted = distil(
        copy.deepcopy(teacher).train().requires_grad_(True),
        batches,
        predict=_denoise,
        teacher=lambda noisy, t, given: guided(teacher, noisy, t, given),
        alphas_cumprod=network_alphas_cumprod(),
        how=Distillation(skip=_UNCLIP_SKIP),
        plan=plan,
        folder=folder,
        resume=resume,
        accelerator=make_accelerator(cpu=True),
    )
    assert isinstance(student, TinyUnclip)
    return student, fitted


def _denoise(network: nn.Module, noisy: Tensor, t: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
    draft, tokens = given
    with autocast():
        clean: Tensor = network.clean(noisy, t, draft, network.context(tokens))
    return clean


def guided(
    network: TinyUnclip, noisy: Tensor, t: Tensor, given: tuple[Tensor, Tensor], scale: float = GUIDANCE
) -> Tensor:
    """Clean latents of the teacher with classifier-free guidance; both predictions in one batch."""
    draft, tokens = given
    both = torch.cat([tokens, network.unconditional.expand_as(tokens)])
    twice = torch.cat([noisy, noisy]), torch.cat([t, t]), (torch.cat([draft, draft]), both)
    conditional, unconditional = _denoise(network, *twice).chunk(2)
    out: Tensor = guide(conditional, unconditional, scale)
    return out
