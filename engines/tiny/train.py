"""Train the tiny pack: seeded and resumable (torch). Import this module inside functions only.

Stages, each with its checkpoint: critic, judge, joint (embedder + decoder + text tower), prior, finetune (decoder on
what the prior gives), captioner. The batch of a step depends on seed, stage and step alone, so that a resumed training
equals an uninterrupted one. The same seed gives the same weights, to the last bit, on the same machine with the same
number of torch's threads; whether networks compute in bfloat16 is the machine's matter (`precision`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.tiny import layout, networks
from engines.tiny.batches import Batch, batches
from engines.tiny.conditions import given_tokens, hard_code, noisy_tokens
from engines.tiny.data import Sample, draw_sample
from engines.tiny.noise import GroupNoise
from engines.tiny.precision import autocast
from engines.training.loop import Fitted, Plan, fit, make_accelerator
from rtdecode.errors import TrainingError

N_PICTURES = 20_000
N_JUDGE_PICTURES = 6_000
_FEWEST = 10
CODE = layout.code_slices()
SCRAMBLED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The networks of a finished training.

    Beside them its pictures and their tokens, the noise model of the tokens, and what each stage took.
    """

    embedder: networks.TinyEmbedder
    prior: networks.TinyPrior
    decoder: networks.TinyDecoder
    captioner: networks.Captioner
    text: nn.Module
    projection: networks.PictureProjection
    judge: networks.Judge
    critic: networks.Critic
    noise: GroupNoise
    sample: Sample
    tokens: Tensor
    stages: dict[str, Fitted]

    def __deepcopy__(self, _: object) -> Trained:
        return self  # networks that are copied hold it beside their own weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan(Plan):
    """How a stage of this half of the recipe is trained: as the shipped pack was.

    All parameters decay; the rate rises in a straight line and falls to 0 as a cosine; and what a step draws is seeded
    by Python's hash of three numbers, the same on every 64-bit CPython since 3.8.
    """

    warm_up: int = 50
    decay_biases: bool = True
    beta2: float = 0.98

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warm_up)
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def seed_at(self, step: int, process: int) -> int:
        """Seed of what a process draws in a step."""
        return hash((self.seed, sorted(STAGES).index(self.name), step)) % 2**62 + process


STAGES = {
    "critic": StagePlan(name="critic", steps=300, rate=2e-3, details={"batch": 64}),
    "judge": StagePlan(name="judge", steps=500, rate=2e-3, details={"batch": 64}),
    "joint": StagePlan(name="joint", steps=2600, rate=2e-3, details={"batch": 32}),
    "prior": StagePlan(name="prior", steps=2500, rate=1.5e-3, details={"batch": 256}),
    "finetune": StagePlan(name="finetune", steps=1200, rate=8e-4, details={"batch": 32}),
    "captioner": StagePlan(name="captioner", steps=1500, rate=3e-3, details={"batch": 128}),
}


class StageObjective(nn.Module):  # type: ignore[misc]
    """The loss of a stage.

    Parameters
    ----------
    module : Module
        What is trained.
    loss : callable
        Gives the loss of a batch; draws random numbers from the generator it is given.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Batch, torch.Generator], Tensor]) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Batch, draw: torch.Generator, _: float) -> Tensor:
        """Loss of a batch, float32."""
        return self._loss(batch, draw)


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

    Raises
    ------
    TrainingError
        A checkpoint is of another seed, effort or version, or a loss is not finite several times in a row.
    """
    folder = out / "checkpoints"
    if resume and (older := sorted(folder.glob("*.pt"))):
        raise TrainingError(
            f"{older[0]}: expected checkpoints in safetensors, got those of an older version; start anew without "
            "resume, or remove them"
        )
    torch.manual_seed(seed)
    words = layout.vocabulary()
    critic, judge = networks.Critic(), networks.Judge()
    embedder, decoder = networks.TinyEmbedder(), networks.TinyDecoder()
    text, projection = networks.text_tower(len(words)), networks.PictureProjection()
    prior, captioner = networks.TinyPrior(), networks.Captioner(len(words))
    for module in (critic, judge, embedder, decoder):
        module.to(memory_format=torch.channels_last)
    fitted: dict[str, Fitted] = {}

    def run(name: str, module: nn.Module, sample: Sample, loss: Callable[[Batch, torch.Generator], Tensor]) -> None:
        plan = STAGES[name]
        fitted[name] = fit(
            StageObjective(module, loss),
            batches(sample, plan.details["batch"]),
            replace(plan, seed=seed, steps=max(_FEWEST, round(plan.steps * effort))),
            folder=folder,
            resume=resume,
            accelerator=make_accelerator(cpu=True),
        )

    own = draw_sample(N_JUDGE_PICTURES, seed + 7_000_000)
    run("judge", judge, own, lambda batch, draw: _judge_loss(judge, batch, draw))
    sample = draw_sample(N_PICTURES, seed)
    run("critic", critic, sample, lambda batch, _: _code_loss(critic(batch.pictures), batch.codes))
    critic.requires_grad_(False)
    run(
        "joint",
        nn.ModuleList([embedder, decoder, text, projection]),
        sample,
        lambda batch, draw: _joint_loss(embedder, decoder, text, projection, critic, batch, draw),
    )
    embedder.requires_grad_(False)
    tokens = embed_all(embedder, sample.pictures)
    noise = GroupNoise(tokens)
    _set_statistics(prior, tokens, noise)
    run("prior", prior, sample, lambda batch, draw: _prior_loss(prior, noise, tokens[batch.rows], batch, draw))
    prior.requires_grad_(False)
    run(
        "finetune",
        decoder,
        sample,
        lambda batch, draw: _finetune_loss(decoder, prior, noise, critic, tokens[batch.rows], batch, draw),
    )
    run("captioner", captioner, sample, lambda batch, _: _caption_loss(captioner, tokens[batch.rows], batch))
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
        stages=fitted,
    )


def embed_all(embedder: networks.TinyEmbedder, pictures: np.ndarray) -> Tensor:
    """Tokens (n, TOKENS, CHANNELS) of uint8 pictures (n, 3, 64, 64)."""
    with torch.inference_mode():
        parts = [
            embedder(torch.from_numpy(part).float() / 255)
            for part in np.array_split(pictures, len(pictures) // 128 + 1)
        ]
    return torch.cat(parts).clone()


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
    embedder: networks.TinyEmbedder,
    decoder: networks.TinyDecoder,
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


def _set_statistics(prior: networks.TinyPrior, tokens: Tensor, noise: GroupNoise) -> None:
    code = networks.read_code(tokens)
    prior.code_mean.copy_(code.mean(0))
    prior.code_std.copy_(code.std(0))
    prior.spatial_mean.copy_(noise.mean[layout.SEMANTIC_VALUES :])
    n = len(prior.std)
    prior.basis.copy_(noise.axes[1][:, :n].T)
    prior.std.copy_(noise.deviations[1][:n])


def _prior_loss(
    prior: networks.TinyPrior, noise: GroupNoise, tokens: Tensor, batch: Batch, draw: torch.Generator
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
    decoder: networks.TinyDecoder,
    prior: networks.TinyPrior,
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
