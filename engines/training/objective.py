"""MindEye2's objective on batches of several participants (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.training.losses import (
    bimixco,
    contrastive_features,
    draw_keep,
    draw_mix,
    half_cosine,
    join_mixes,
    mix_voxels,
    prior_loss,
    soft_clip,
    soft_cont,
)
from engines.training.shared_model import Learner, Trials
from rtdecode.decode.networks.backbone import BackboneOutput
from rtdecode.decode.sampling.schedule import CosineSchedule
from rtdecode.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights and temperatures of the objective; the defaults are the published ones.

    Attributes
    ----------
    prior, contrastive, low : float
    low_contrastive : float
        Of the contrastive part within the low-level loss.
    anchor : float
        Of the squared error of the backbone's tokens, which MindEye2 has not: with it the backbone gives what a ridge
        regression onto tokens gives, so that a new participant may be fitted in closed form.
    mix_share : float
        First part of the training with BiMixCo; SoftCLIP after it.
    mix_temperature, soft_temperature, soft_temperature_end : float
    """

    prior: float = 30.0
    contrastive: float = 1.0
    low: float = 0.5
    low_contrastive: float = 0.1
    anchor: float = 0.0
    mix_share: float = 0.33
    mix_temperature: float = 0.006
    soft_temperature: float = 0.004
    soft_temperature_end: float = 0.0075


class MindEye2Objective(nn.Module):  # type: ignore[misc]
    """Prior, contrastive and low-level loss of one batch of several participants.

    Parameters
    ----------
    model : Learner
    schedule : CosineSchedule
        Of the prior.
    weights : Weights
    precision : torch.dtype, optional
        Of ridge and backbone, by autocast; the prior and all losses are computed in float32.
    """

    def __init__(
        self,
        model: Learner,
        schedule: CosineSchedule,
        weights: Weights | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._schedule = schedule
        self._weights = weights or Weights()
        self._precision = precision

    def forward(self, batch: Sequence[Trials], draw: torch.Generator, progress: float) -> Tensor:
        """Loss of a batch, float32.

        Raises
        ------
        TrainingError
            A participant has a single trial in the batch, which has no partner to be mixed with.
        """
        weights, model = self._weights, self.model
        if any(len(trials.betas) < 2 for trials in batch):
            raise TrainingError("expected at least 2 trials of each participant in a batch, got 1")
        device = batch[0].betas.device
        mixing = progress < weights.mix_share
        mixes = [draw_mix(len(trials.betas), generator=draw, device=str(device)) for trials in batch]
        betas = [mix_voxels(t.betas, mix) if mixing else t.betas for t, mix in zip(batch, mixes, strict=True)]
        with torch.autocast(device.type, self._precision, enabled=self._precision is not None):
            hidden = torch.cat([model.ridge(b, t.participant) for b, t in zip(betas, batch, strict=True)])
            read = model.backbone(hidden)
        tokens = torch.cat([trials.tokens for trials in batch])
        ours, theirs = contrastive_features(read.retrieval), contrastive_features(tokens)
        if mixing:
            mix = join_mixes(mixes)
            contrastive = bimixco(ours, theirs, temperature=weights.mix_temperature, mix=mix)
            share = mix.betas.reshape(-1, 1, 1)
            anchored = tokens * share + tokens[mix.perm] * (1 - share)
        else:
            done = (progress - weights.mix_share) / max(1e-6, 1 - weights.mix_share)
            start, end = weights.soft_temperature, weights.soft_temperature_end
            temperature = half_cosine(start, end, min(done, 1.0))
            contrastive = soft_clip(ours, theirs, temperature=temperature)
            anchored = tokens
        loss = weights.contrastive * contrastive
        if weights.prior:
            loss = loss + weights.prior * self._prior(model.condition(read.tokens.float(), batch), tokens, draw)
        loss = loss + self._low(read, batch)
        if weights.anchor:
            loss = loss + weights.anchor * functional.mse_loss(read.tokens.float(), anchored.float())
        return loss

    def _low(self, read: BackboneOutput, batch: Sequence[Trials]) -> Tensor:
        if read.latent is None or read.features is None:
            return torch.zeros((), device=read.tokens.device)
        absolute = functional.l1_loss(read.latent.float(), _joined([trials.latent for trials in batch]))
        student = contrastive_features(read.features)
        teacher = contrastive_features(_joined([trials.teacher for trials in batch]))
        augmented = contrastive_features(_joined([trials.teacher_augmented for trials in batch]))
        contrastive = soft_cont(student, teacher, augmented)
        return self._weights.low * (absolute + self._weights.low_contrastive * contrastive)

    def _prior(self, condition: Tensor, clean: Tensor, draw: torch.Generator) -> Tensor:
        more = self.model.extra(draw)
        if more is not None:
            condition, clean = (torch.cat([a, b.to(a.device)]) for a, b in zip((condition, clean), more, strict=True))
        n, device = len(clean), clean.device
        t = torch.randint(self._schedule.timesteps, (n,), generator=draw).to(device)
        noise = torch.randn(clean.shape, generator=draw).to(device)
        keep = [draw_keep(n, generator=draw).to(device) for _ in range(2)]
        loss, _ = prior_loss(
            self.model.prior,
            self._schedule,
            clean,
            condition,
            t=t,
            noise=noise,
            keep_condition=keep[0],
            keep_image=keep[1],
        )
        return loss


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        raise TrainingError(
            "the low-level branch needs latents and teacher features of every trial; give them, or train without the "
            "branch"
        )
    return torch.cat(present).float()
