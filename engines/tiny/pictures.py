"""Stages that train the autoencoder and the unCLIP teacher (torch). Import this module inside functions only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.tiny import layout
from engines.tiny.batches import Batch, batches
from engines.tiny.conditions import given_tokens
from engines.tiny.diffusion import TinyAutoencoder, TinyUnclip
from engines.tiny.precision import autocast
from engines.tiny.train import Trained
from engines.training.loop import Fitted, Plan, fit, make_accelerator
from engines.training.state import Ema
from rtdecode.decode.sampling.edm import LEVELS

AUTOENCODER = Plan(name="autoencoder", steps=900, rate=2e-3)
FINISH = Plan(name="autoencoder_finish", steps=900, rate=1.2e-3)
TEACHER = Plan(name="unclip_teacher", steps=2200, rate=1e-3)
_AUTOENCODER_BATCH = 16
_TEACHER_BATCH = 16
_FINISH_BATCH = 16
_EMA = 0.998
_DROPPED = 0.1
_SCRAMBLED_WEIGHT = 0.5
_N_STATISTICS = 512


class AutoencoderObjective(nn.Module):  # type: ignore[misc]
    """Error of pictures through noisy latents, with no draft; a third of the pictures are drafts themselves."""

    def __init__(self, autoencoder: TinyAutoencoder, trained: Trained) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._trained = (trained,)

    def forward(self, batch: Batch, draw: torch.Generator, _: float) -> Tensor:
        """Loss of a batch."""
        (trained,) = self._trained
        third = len(batch.rows) // 3
        drafts = draft_pictures(trained, batch.rows[:third], batch.codes[:third], draw)
        pictures = torch.cat([drafts, batch.pictures[third:]]).contiguous(memory_format=torch.channels_last)
        with autocast():
            latents = self.autoencoder.blur(self.autoencoder.encode(pictures), draw)
            decoded = self.autoencoder(latents, torch.full_like(pictures, 0.5))
        return picture_error(decoded, pictures, batch)


class FinishObjective(nn.Module):  # type: ignore[misc]
    """Error of pictures through noisy latents beside the draft that the same picture's tokens give."""

    def __init__(self, autoencoder: TinyAutoencoder, latents: Tensor, trained: Trained) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self._fixed = (latents, trained)

    def forward(self, batch: Batch, draw: torch.Generator, _: float) -> Tensor:
        """Loss of a batch."""
        latents, trained = self._fixed
        drafts = draft_pictures(trained, batch.rows, batch.codes, draw)
        self.autoencoder.scale.eval()
        with autocast():
            decoded = self.autoencoder(self.autoencoder.blur(latents[batch.rows], draw), drafts)
            ours = trained.critic.features(decoded)
            with torch.no_grad():
                theirs = trained.critic.features(batch.pictures)
        loss = picture_error(decoded, batch.pictures, batch)
        for a, b in zip(ours, theirs, strict=True):
            loss = loss + 0.1 * (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-3)
        return loss


class TeacherObjective(nn.Module):  # type: ignore[misc]
    """Squared error of what `TinyUnclip` predicts, in its own units; a tenth of the tokens are unconditional."""

    def __init__(self, unclip: TinyUnclip, autoencoder: TinyAutoencoder, latents: Tensor, trained: Trained) -> None:
        super().__init__()
        self.unclip = unclip
        self._fixed = (autoencoder, latents, trained)

    def forward(self, batch: Batch, draw: torch.Generator, _: float) -> Tensor:
        """Loss of a batch."""
        autoencoder, latents, trained = self._fixed
        n = len(batch.rows)
        clean = latents[batch.rows]
        tokens = given_tokens(trained.prior, trained.noise, trained.tokens[batch.rows], batch.codes, draw)
        draft = draft_latents(trained, autoencoder, tokens)
        dropped = torch.rand((n, 1, 1), generator=draw) < _DROPPED
        tokens = torch.where(dropped, self.unclip.unconditional, tokens)
        t = noise_levels(n, draw)
        sigma = self.unclip.sigmas[t][:, None, None, None]
        signal = (1 + sigma.square()).rsqrt()
        noisy = signal * (clean + sigma * torch.randn(clean.shape, generator=draw))
        with autocast():
            predicted = self.unclip.clean(noisy, t, draft, self.unclip.context(tokens))
        unit = 1 / (1 / self.unclip.residual.square() + 1 / sigma.square())
        ordinary = 1 - _SCRAMBLED_WEIGHT * batch.codes[:, _scrambled(), None, None, None]
        weight = ordinary * (0.7 + 1.3 * functional.avg_pool2d(batch.masks, 4)) / unit
        return (weight * (predicted - clean).square()).mean()


def picture_error(decoded: Tensor, pictures: Tensor, batch: Batch) -> Tensor:
    """Absolute and squared error and error of the slopes; the object weighs three times the background."""
    ordinary = 1 - _SCRAMBLED_WEIGHT * batch.codes[:, _scrambled()]
    weight = (0.7 + 1.3 * batch.masks) * ordinary[:, None, None, None]
    error = decoded - pictures
    loss = (weight * (error.abs() + 2 * error.square())).mean()
    for axis in (2, 3):
        loss = loss + 0.35 * (weight.narrow(axis, 1, 63) * torch.diff(error, dim=axis).abs()).mean()
    return loss


def noise_levels(n: int, draw: torch.Generator) -> Tensor:
    """Levels (n,), the noisy end more often: few steps make most of their calls there."""
    return (LEVELS * torch.rand(n, generator=draw).pow(0.7)).long().clamp(max=LEVELS - 1)


def draft_pictures(trained: Trained, rows: Tensor, codes: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures that the regression decoder draws from tokens as it will be given them."""
    tokens = given_tokens(trained.prior, trained.noise, trained.tokens[rows], codes, draw)
    with torch.no_grad(), autocast():
        return trained.decoder(tokens).float().contiguous(memory_format=torch.channels_last)


def draft_latents(trained: Trained, autoencoder: TinyAutoencoder, tokens: Tensor) -> Tensor:
    """Latents of what the regression decoder draws from tokens."""
    with torch.no_grad(), autocast():
        latents: Tensor = autoencoder.encode(trained.decoder(tokens).float())
        return latents.float()


def encode_all(autoencoder: TinyAutoencoder, pictures: np.ndarray) -> Tensor:
    """Latents (n, 8, 16, 16) of uint8 pictures."""
    with torch.no_grad():
        parts = [
            autoencoder.encode((torch.from_numpy(part).float() / 255).contiguous(memory_format=torch.channels_last))
            for part in np.array_split(pictures, len(pictures) // 64 + 1)
        ]
    return torch.cat(parts).contiguous()


def train_autoencoder(trained: Trained, folder: Path, plan: Plan, *, resume: bool) -> tuple[TinyAutoencoder, Fitted]:
    """Train the autoencoder."""
    torch.manual_seed(plan.seed + 1)
    autoencoder = TinyAutoencoder().to(memory_format=torch.channels_last)
    objective = AutoencoderObjective(autoencoder, trained)
    fitted = fit(
        objective,
        batches(trained.sample, _AUTOENCODER_BATCH),
        plan,
        folder=folder,
        resume=resume,
        accelerator=make_accelerator(cpu=True),
    )
    return autoencoder.requires_grad_(False), fitted


def finish_autoencoder(
    autoencoder: TinyAutoencoder,
    trained: Trained,
    latents: Tensor,
    folder: Path,
    plan: Plan,
    *,
    resume: bool,
) -> tuple[TinyAutoencoder, Fitted]:
    """Train the autoencoder's decoder on, beside drafts; its latents stay what they are."""
    autoencoder.requires_grad_(True)
    autoencoder.encoder.requires_grad_(False)
    objective = FinishObjective(autoencoder, latents, trained)
    fitted = fit(
        objective,
        batches(trained.sample, _FINISH_BATCH),
        plan,
        folder=folder,
        resume=resume,
        accelerator=make_accelerator(cpu=True),
    )
    return autoencoder.requires_grad_(False), fitted


def train_teacher(
    trained: Trained, autoencoder: TinyAutoencoder, latents: Tensor, folder: Path, plan: Plan, *, resume: bool
) -> tuple[TinyUnclip, Fitted]:
    """Train the unCLIP teacher; returns the average of its weights."""
    torch.manual_seed(plan.seed + 2)
    unclip = TinyUnclip().to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(plan.seed)
    rows = torch.arange(min(_N_STATISTICS, len(trained.tokens)))
    codes = torch.from_numpy(trained.sample.codes[: len(rows)])
    given = given_tokens(trained.prior, trained.noise, trained.tokens[rows], codes, draw)
    unclip.token_mean.copy_(trained.tokens.mean(0))
    unclip.token_std.copy_(trained.tokens.std(0).clamp_min(0.05))
    unclip.unconditional.copy_(unclip.token_mean + unclip.token_std * torch.randn(given.shape[1:], generator=draw))
    away = draft_latents(trained, autoencoder, given) - latents[rows]
    unclip.residual.copy_(away.square().mean().sqrt())
    ema = Ema(unclip, _EMA)
    objective = TeacherObjective(unclip, autoencoder, latents, trained)
    fitted = fit(
        objective,
        batches(trained.sample, _TEACHER_BATCH),
        plan,
        folder=folder,
        resume=resume,
        ema=ema,
        accelerator=make_accelerator(cpu=True),
    )
    return ema.module, fitted


def _scrambled() -> int:
    return layout.BLOCKS[0] - 1
