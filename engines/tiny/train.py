"""Train the tiny pack: seeded and resumable (torch). Import this module inside functions only.

Stages, each with its checkpoint: critic, judge, joint (embedder + decoder + text tower), prior, finetune (decoder on
what the prior gives), captioner. The batch of a step depends on seed, stage and step alone, so that a resumed training
equals an uninterrupted one. The same seed gives the same weights, to the last bit, on the same machine with the same
number of torch's threads; whether networks compute in bfloat16 is the machine's matter (`precision`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import Tensor, nn
from torch.nn import functional

from engines.tiny import layout, networks
from engines.tiny.conditions import given_tokens, hard_code, noisy_tokens
from engines.tiny.data import Sample, draw_sample
from engines.tiny.noise import GroupNoise
from engines.tiny.precision import autocast

log = logging.getLogger(__name__)

N_PICTURES = 20_000
N_JUDGE_PICTURES = 6_000
STEPS = {"critic": 300, "judge": 500, "joint": 2600, "prior": 2500, "finetune": 1200, "captioner": 1500}
CHECKPOINT_EVERY_S = 60.0
CODE = layout.code_slices()
SCRAMBLED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The networks of a finished training, its pictures and their tokens, and the noise model of the tokens."""

    embedder: networks.Embedder
    prior: networks.Prior
    decoder: networks.Decoder
    captioner: networks.Captioner
    text: nn.Module
    projection: networks.PictureProjection
    judge: networks.Judge
    critic: networks.Critic
    noise: GroupNoise
    sample: Sample
    tokens: Tensor
    seconds: dict[str, float]

    def __deepcopy__(self, _: object) -> Trained:
        return self  # networks that are copied hold it beside their own weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures in 0..1 and what is known of them."""

    pictures: Tensor
    masks: Tensor
    codes: Tensor
    captions: Tensor
    index: Tensor


def train(out: Path, *, seed: int = 0, effort: float = 1.0, resume: bool = False) -> Trained:
    """Train every stage.

    Parameters
    ----------
    out : Path
        Folder for checkpoints; made when absent.
    seed : int
        Seeds pictures, initial weights, batches and noise.
    effort : float
        Multiplies the number of steps of every stage; 1 is the recipe.
    resume : bool
        Go on from the checkpoints in `out`; otherwise they are overwritten.

    Returns
    -------
    Trained
    """
    torch.manual_seed(seed)
    words = layout.vocabulary()
    critic, judge = networks.Critic(), networks.Judge()
    embedder, decoder = networks.Embedder(), networks.Decoder()
    text, projection = networks.text_tower(len(words)), networks.PictureProjection()
    prior, captioner = networks.Prior(), networks.Captioner(len(words))
    for module in (critic, judge, embedder, decoder):
        module.to(memory_format=torch.channels_last)
    runner = StageRunner(out / "checkpoints", seed=seed, effort=effort, resume=resume)

    own = draw_sample(N_JUDGE_PICTURES, seed + 7_000_000)
    runner.run("judge", judge, own, 64, 2e-3, lambda batch, draw: _judge_loss(judge, batch, draw))
    sample = draw_sample(N_PICTURES, seed)
    runner.run("critic", critic, sample, 64, 2e-3, lambda batch, _: _code_loss(critic(batch.pictures), batch.codes))
    critic.requires_grad_(False)
    joint = nn.ModuleList([embedder, decoder, text, projection])
    runner.run(
        "joint",
        joint,
        sample,
        32,
        2e-3,
        lambda batch, draw: _joint_loss(embedder, decoder, text, projection, critic, batch, draw),
    )
    embedder.requires_grad_(False)
    tokens = embed_all(embedder, sample.pictures)
    noise = GroupNoise(tokens)
    _set_statistics(prior, tokens, noise)
    runner.run(
        "prior",
        prior,
        sample,
        256,
        1.5e-3,
        lambda batch, draw: _prior_loss(prior, noise, tokens[batch.index], batch, draw),
    )
    prior.requires_grad_(False)
    runner.run(
        "finetune",
        decoder,
        sample,
        32,
        8e-4,
        lambda batch, draw: _finetune_loss(decoder, prior, noise, critic, tokens[batch.index], batch, draw),
    )
    runner.run(
        "captioner", captioner, sample, 128, 3e-3, lambda batch, _: _caption_loss(captioner, tokens[batch.index], batch)
    )
    for module in (embedder, decoder, prior, captioner, judge, critic, text, projection):
        module.eval().requires_grad_(False)
    return Trained(
        embedder=embedder,
        prior=prior,
        decoder=decoder,
        captioner=captioner,
        text=text,
        projection=projection,
        judge=judge,
        critic=critic,
        noise=noise,
        sample=sample,
        tokens=tokens,
        seconds=runner.seconds,
    )


def embed_all(embedder: networks.Embedder, pictures: np.ndarray) -> Tensor:
    """Tokens (n, TOKENS, CHANNELS) of uint8 pictures (n, 3, 64, 64)."""
    with torch.inference_mode():
        parts = [
            embedder(torch.from_numpy(part).float() / 255)
            for part in np.array_split(pictures, len(pictures) // 128 + 1)
        ]
    return torch.cat(parts).clone()


class StageRunner:
    """Runs stages; owns checkpoints, learning rates and progress."""

    def __init__(self, folder: Path, *, seed: int, effort: float, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._seed = seed
        self._effort = effort
        self._resume = resume
        self.seconds: dict[str, float] = {}

    def run(
        self,
        name: str,
        module: nn.Module,
        sample: Sample,
        batch_size: int,
        rate: float,
        loss: Callable[[Batch, torch.Generator], Tensor],
    ) -> None:
        """Train `module` for the steps of stage `name`, from its checkpoint where one may be used.

        Parameters
        ----------
        name : str
            A key of `STEPS`.
        module : Module
            What is trained; left in evaluation mode.
        sample : Sample
            Where batches are drawn from.
        batch_size : int
        rate : float
            Largest learning rate; it warms up, then falls to 0 as a cosine.
        loss : callable
            Gives the loss of a batch; draws random numbers from the generator it is given.
        """
        steps = max(10, round(STEPS[name] * self._effort))
        path = self._folder / f"{name}.pt"
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        first, spent = 0, 0.0
        if self._resume and path.exists():
            saved = torch.load(path, weights_only=True)
            module.load_state_dict(saved["module"])
            optimizer.load_state_dict(saved["optimizer"])
            first, spent = saved["step"], saved["seconds"]
        module.train()
        began = saved_at = time.monotonic()
        columns = [*Progress.get_default_columns(), TextColumn("{task.fields[loss]}")]
        with Progress(*columns) as progress:
            task = progress.add_task(name, total=steps, completed=first, loss="")
            for step in range(first, steps):
                draw = torch.Generator().manual_seed(hash((self._seed, sorted(STEPS).index(name), step)) % 2**62)
                batch = _batch(sample, torch.randint(len(sample), (batch_size,), generator=draw))
                warm = min(1.0, (step + 1) / 50)
                optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
                value = loss(batch, draw)
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                progress.update(task, advance=1, loss=f"{value.item():.3f}")
                if step % 100 == 0:
                    log.info("%s %d/%d loss %.4f %.0f s", name, step, steps, value.item(), time.monotonic() - began)
                if time.monotonic() - saved_at > CHECKPOINT_EVERY_S or step == steps - 1:
                    saved_at = time.monotonic()
                    _save(path, module, optimizer, step + 1, spent + saved_at - began)
        self.seconds[name] = round(spent + time.monotonic() - began, 1)
        module.eval()


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    draft = path.with_suffix(".draft")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, draft)
    os.replace(draft, path)


def _batch(sample: Sample, index: Tensor) -> Batch:
    rows = index.numpy()
    pictures = (torch.from_numpy(sample.pictures[rows]).float() / 255).contiguous(memory_format=torch.channels_last)
    return Batch(
        pictures=pictures,
        masks=torch.from_numpy(sample.masks[rows]).float(),
        codes=torch.from_numpy(sample.codes[rows]),
        captions=torch.from_numpy(sample.captions[rows]),
        index=index,
    )


def _code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of the classes, absolute error of size and place, logistic loss of facing and style."""
    loss = torch.zeros(())
    for part in CODE[:3]:
        loss = loss + functional.cross_entropy(logits[:, part], codes[:, part].argmax(1))
    geometry, true = logits[:, CODE[3]], codes[:, CODE[3]]
    n = layout.CONTINUOUS
    seen = (true[:, n:] != 0).float()
    binary = functional.binary_cross_entropy_with_logits(2 * geometry[:, n:], (true[:, n:] > 0).float(), weight=seen)
    return loss + 4 * functional.smooth_l1_loss(geometry[:, :n], true[:, :n], beta=0.1) + 0.5 * binary


def _judge_loss(judge: nn.Module, batch: Batch, draw: torch.Generator) -> Tensor:
    """Cross-entropy on pictures of which half are blurred, faded or grainy, as reconstructions may be."""
    pictures = batch.pictures
    half = len(pictures) // 2
    soft = functional.interpolate(functional.avg_pool2d(pictures[:half], 2), scale_factor=2.0, mode="bilinear")
    gain = 0.7 + 0.6 * torch.rand((half, 1, 1, 1), generator=draw)
    grain = 0.04 * torch.randn(soft.shape, generator=draw)
    mixed = torch.cat([(soft * gain + grain).clamp(0, 1), pictures[half:]])
    with autocast():
        logits = judge(mixed)
    return functional.cross_entropy(logits, batch.codes[:, CODE[0]].argmax(1))


def _picture_loss(decoded: Tensor, batch: Batch, critic: networks.Critic) -> Tensor:
    """L1 + MSE + gradient L1 + perceptual; the object weighs five times the background, scrambled pictures little."""
    truth = batch.pictures
    ordinary = 1 - 0.85 * batch.codes[:, SCRAMBLED]
    weight = (0.6 + 2.4 * batch.masks) * ordinary[:, None, None, None]
    error = decoded - truth
    loss = (weight * (error.abs() + 0.5 * error.square())).mean()
    for axis in (2, 3):
        slope = torch.diff(error, dim=axis).abs()
        loss = loss + 0.35 * (weight.narrow(axis, 1, 63) * slope).mean()
    with autocast():
        ours = critic.features(decoded)
        with torch.no_grad():
            theirs = critic.features(truth)
    for a, b in zip(ours, theirs, strict=True):
        distance = (a.float() - b.float()).abs().mean((1, 2, 3)) / (b.float().abs().mean() + 1e-3)
        loss = loss + 0.1 * (distance * ordinary).mean()
    return loss


def _joint_loss(
    embedder: networks.Embedder,
    decoder: networks.Decoder,
    text: nn.Module,
    projection: networks.PictureProjection,
    critic: networks.Critic,
    batch: Batch,
    draw: torch.Generator,
) -> Tensor:
    with autocast():
        logits, tokens = embedder.encode(batch.pictures)
    semantic, spatial = tokens[:, : layout.SEMANTIC_TOKENS], tokens[:, layout.SEMANTIC_TOKENS :]
    mean, std = spatial.mean(0, keepdim=True), spatial.std(0, keepdim=True)
    r2 = torch.rand((len(tokens), 1, 1), generator=draw)
    r2 = torch.where(torch.rand((len(tokens), 1, 1), generator=draw) < 0.6, torch.full_like(r2, 0.97), r2)
    noisy = mean + r2 * (spatial - mean) + (r2 * (1 - r2)).sqrt() * std * torch.randn(spatial.shape, generator=draw)
    with autocast():
        decoded = decoder(torch.cat([semantic, noisy], 1))
    return (
        _picture_loss(decoded, batch, critic)
        + 0.4 * _code_loss(logits, batch.codes)
        + 0.15 * _contrastive_loss(projection(tokens), text(batch.captions), batch.captions, projection.log_scale)
    )


def _contrastive_loss(pictures: Tensor, texts: Tensor, captions: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's loss where every picture with the same caption is a positive."""
    scores = functional.normalize(pictures) @ functional.normalize(texts.float()).T * log_scale.exp().clamp(max=50)
    same = (captions[:, None] == captions[None]).all(2).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target))


def _set_statistics(prior: networks.Prior, tokens: Tensor, noise: GroupNoise) -> None:
    code = networks.read_code(tokens)
    prior.code_mean.copy_(code.mean(0))
    prior.code_std.copy_(code.std(0))
    prior.spatial_mean.copy_(noise.mean[layout.SEMANTIC_VALUES :])
    n = len(prior.std)
    prior.basis.copy_(noise.axes[1][:, :n].T)
    prior.std.copy_(noise.deviations[1][:n])


def _prior_loss(
    prior: networks.Prior, noise: GroupNoise, tokens: Tensor, batch: Batch, draw: torch.Generator
) -> Tensor:
    noisy, r2 = noisy_tokens(noise, tokens, draw)
    seen, noisy_spatial = prior.see(noisy, r2)
    logits = prior.judge(seen)
    code = hard_code(tokens, batch.codes)
    loss = torch.zeros(())
    for part, weight in zip(CODE[:3], (1.0, 0.5, 0.5), strict=True):
        loss = loss + weight * functional.cross_entropy(logits[:, part], code[:, part].argmax(1))
    loss = loss + 2 * functional.mse_loss(logits[:, CODE[3]], code[:, CODE[3]])
    clean = prior.see(tokens, torch.ones_like(r2))[1]
    filled = prior.fill(seen, noisy_spatial, code)
    share = prior.std.square() / prior.std.square().mean()
    return loss + (share * (filled - clean).square()).mean()


def _finetune_loss(
    decoder: networks.Decoder,
    prior: networks.Prior,
    noise: GroupNoise,
    critic: networks.Critic,
    tokens: Tensor,
    batch: Batch,
    draw: torch.Generator,
) -> Tensor:
    given = given_tokens(prior, noise, tokens, batch.codes, draw)
    with autocast():
        decoded = decoder(given)
    return _picture_loss(decoded, batch, critic)


def _caption_loss(captioner: networks.Captioner, tokens: Tensor, batch: Batch) -> Tensor:
    logits = captioner.teach(tokens, batch.captions)
    ends = (batch.captions == layout.END).float()
    counted = (ends.cumsum(1) - ends) == 0
    return functional.cross_entropy(logits[counted], batch.captions[counted])
