"""MindEye1's two objectives (Scotti et al. 2023) on trials (torch). Import this module inside functions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.training.losses import (
    bimixco,
    contrastive_features,
    draw_keep,
    draw_mix,
    half_cosine,
    mix_voxels,
    prior_loss,
    soft_clip,
    soft_cont,
)
from rtdecode.decode.networks.brain import BrainNetwork, LowLevel
from rtdecode.decode.networks.prior import PriorNetwork
from rtdecode.decode.sampling.schedule import CosineSchedule

Contrast = Literal["bimixco+softclip", "bimixco", "mixco", "softclip", "clip", "infonce"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MindEye1Weights:
    """Weights and temperatures; the defaults are the published ones.

    Attributes
    ----------
    contrast : str
        Which contrastive loss: BiMixCo at first and then SoftCLIP, or one of those that the paper compares it with.
        MixCo and InfoNCE look from brains to pictures only.
    prior : float
    low_contrast : float
        Of the contrastive part of the low-level loss.
    mix_share : float
        First part of the training with BiMixCo, where SoftCLIP follows.
    mix_temperature, soft_temperature, soft_temperature_end : float
    """

    contrast: Contrast = "bimixco+softclip"
    prior: float = 0.3
    low_contrast: float = 0.1
    mix_share: float = 0.33
    mix_temperature: float = 0.006
    soft_temperature: float = 0.004
    soft_temperature_end: float = 0.0075


class SeenTrials(NamedTuple):
    """Trials of the participant.

    Attributes
    ----------
    betas : Tensor of shape (n, voxels)
        Standardised per voxel.
    tokens : Tensor of shape (n, tokens, dim)
        Of the pictures seen, as the embedder gives them; empty where only the low level is trained.
    latent : Tensor of shape (n, 4, 64, 64) or None
        Blurry pictures.
    teacher, teacher_augmented : Tensor of shape (n, 256, 512) or None
        What a frozen picture network says of the pictures, and of augmented ones.
    """

    betas: Tensor
    tokens: Tensor | None = None
    latent: Tensor | None = None
    teacher: Tensor | None = None
    teacher_augmented: Tensor | None = None


class MindEye1Objective(nn.Module):  # type: ignore[misc]
    """Contrastive loss of the projected tokens, and the prior's loss given the tokens.

    Parameters
    ----------
    brain : BrainNetwork
    prior : PriorNetwork
    schedule : CosineSchedule
        Of the prior.
    weights : MindEye1Weights
    """

    def __init__(
        self, brain: BrainNetwork, prior: PriorNetwork, schedule: CosineSchedule, weights: MindEye1Weights
    ) -> None:
        super().__init__()
        self.brain = brain
        self.prior = prior
        self._schedule = schedule
        self._weights = weights

    def forward(self, batch: SeenTrials, draw: torch.Generator, progress: float) -> Tensor:
        """Loss of a batch, float32."""
        weights, betas = self._weights, batch.betas
        assert batch.tokens is not None
        clean = batch.tokens.float()
        both = weights.contrast == "bimixco+softclip"
        mixing = weights.contrast in ("bimixco", "mixco") or (both and progress < weights.mix_share)
        mix = draw_mix(len(betas), generator=draw, device=str(betas.device)) if mixing else None
        tokens, projected = self.brain(betas if mix is None else mix_voxels(betas, mix))
        ours, theirs = contrastive_features(projected), contrastive_features(clean)
        if mix is not None or weights.contrast in ("clip", "infonce"):
            one_way = weights.contrast in ("mixco", "infonce")
            loss = bimixco(ours, theirs, temperature=weights.mix_temperature, mix=mix, one_way=one_way)
        else:
            begun = weights.mix_share if both else 0.0
            done = min((progress - begun) / max(1e-6, 1 - begun), 1.0)
            temperature = half_cosine(weights.soft_temperature, weights.soft_temperature_end, done)
            loss = soft_clip(ours, theirs, temperature=temperature)
        if weights.prior:
            loss = loss + weights.prior * self._prior_loss(tokens.float(), clean, draw)
        return loss

    def _prior_loss(self, condition: Tensor, clean: Tensor, draw: torch.Generator) -> Tensor:
        n, device = len(clean), clean.device
        scaled = clean * clean.shape[2] ** 0.5  # as published: a token's values are then of about unit variance
        loss, _ = prior_loss(
            self.prior,
            self._schedule,
            scaled,
            condition,
            t=torch.randint(self._schedule.timesteps, (n,), generator=draw).to(device),
            noise=torch.randn(clean.shape, generator=draw).to(device),
            keep_condition=draw_keep(n, generator=draw).to(device),
            keep_image=draw_keep(n, generator=draw).to(device),
        )
        return loss


class LowLevelObjective(nn.Module):  # type: ignore[misc]
    """Absolute error of the blurry latent, and SoftCLIP against the teacher's features of the pictures.

    Parameters
    ----------
    network : LowLevel
        With the projector of features.
    weights : MindEye1Weights
    """

    def __init__(self, network: LowLevel, weights: MindEye1Weights) -> None:
        super().__init__()
        self.network = network
        self._weights = weights

    def forward(self, batch: SeenTrials, draw: torch.Generator, progress: float) -> Tensor:  # noqa: ARG002 - as asked
        """Loss of a batch, float32."""
        assert batch.latent is not None
        assert batch.teacher is not None
        assert batch.teacher_augmented is not None
        latent, features = self.network(batch.betas)
        absolute = functional.l1_loss(latent.float(), batch.latent.float())
        contrastive = soft_cont(
            contrastive_features(features),
            contrastive_features(batch.teacher),
            contrastive_features(batch.teacher_augmented),
        )
        return absolute + self._weights.low_contrast * contrastive
