"""Training objectives of MindEye2 (Scotti et al. 2024) in torch. Import this module inside functions only.

Logits, softmax and sums are taken in float32 whatever the precision of the inputs: at the published temperatures
(0.004 and 0.006) half precision overflows, which is where the reports of NaN in training come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rtdecode.decode.sampling.schedule import CosineSchedule

MIX_BETA = 0.15
MIX_SELECT = 0.5
DROP = 0.2
"""Chance that the prior's condition is dropped, and, independently, its noisy tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix:
    """How the samples of a batch are mixed (MixCo, Kim et al. 2020).

    Attributes
    ----------
    perm : Tensor of shape (n,), int64
        The partner of each sample.
    betas : Tensor of shape (n,), float32
        Share of the sample itself; 1 where it is not mixed.
    select : Tensor of shape (n,), bool
        Which samples are mixed.
    """

    perm: Tensor
    betas: Tensor
    select: Tensor


def draw_mix(
    n: int, *, generator: torch.Generator, beta: float = MIX_BETA, threshold: float = MIX_SELECT, device: str = "cpu"
) -> Mix:
    """Draw partners, shares from Beta(`beta`, `beta`), and which samples are mixed (chance `threshold`).

    `generator` is one of the CPU, so that a seed mixes alike on any device.
    """
    perm = torch.randperm(n, generator=generator)
    # Of two gammas, with the generator: torch.distributions takes none.
    concentration = torch.full((2, n), beta)
    gammas = torch._standard_gamma(concentration, generator=generator).clamp_min(1e-30)
    betas = gammas[0] / gammas.sum(0)
    select = torch.rand(n, generator=generator) <= threshold
    betas = torch.where(select, betas, 1.0)
    return Mix(perm=perm.to(device), betas=betas.to(device), select=select.to(device))


def mix_voxels(voxels: Tensor, mix: Mix) -> Tensor:
    """Voxels (n, ...) with the selected samples mixed with their partners."""
    betas = mix.betas.to(voxels.dtype).reshape(-1, *[1] * (voxels.ndim - 1))
    mixed = voxels * betas + voxels[mix.perm] * (1 - betas)
    return torch.where(mix.select.reshape(betas.shape), mixed, voxels)


def join_mixes(mixes: Sequence[Mix]) -> Mix:
    """Mix of a batch made of several participants' samples, in order.

    Each participant's partners are places within its own samples, so they move by the samples before them. The
    published training concatenates them as they are, and from the second participant on sets the targets of other
    participants' samples.
    """
    starts = [0]
    for mix in mixes[:-1]:
        starts.append(starts[-1] + len(mix.perm))
    return Mix(
        perm=torch.cat([mix.perm + start for mix, start in zip(mixes, starts, strict=True)]),
        betas=torch.cat([mix.betas for mix in mixes]),
        select=torch.cat([mix.select for mix in mixes]),
    )


def contrastive_features(tokens: Tensor) -> Tensor:
    """Tokens (n, t, d) as one unit vector (n, t * d) each, float32."""
    return functional.normalize(tokens.float().flatten(1), dim=-1)


def bimixco(
    predicted: Tensor, target: Tensor, *, temperature: float, mix: Mix | None = None, one_way: bool = False
) -> Tensor:
    """Contrastive loss in both directions, with the targets of mixed samples shared.

    Parameters
    ----------
    predicted, target : Tensor of shape (n, f)
        Unit vectors.
    temperature : float
    mix : Mix, optional
        None for the plain contrastive loss.
    one_way : bool
        Only from what is predicted to the targets, as MixCo and InfoNCE.
    """
    logits = _logits(predicted, target, temperature)
    if mix is None:
        shares = torch.eye(len(logits), device=logits.device)
    else:
        shares = torch.diag(mix.betas.float())
        # Assigned, not added, as published: a sample that is its own partner keeps 1 - beta only.
        shares[torch.arange(len(logits), device=logits.device), mix.perm] = 1 - mix.betas.float()
    if one_way:
        return _cross_entropy(logits, shares)
    return (_cross_entropy(logits, shares) + _cross_entropy(logits.T, shares.T)) / 2


def soft_clip(predicted: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """Contrastive loss in both directions against the targets' own similarities.

    Parameters are those of `bimixco`.
    """
    logits = _logits(predicted, target, temperature)
    shares = _logits(target, target, temperature).softmax(-1)
    return (_cross_entropy(logits, shares) + _cross_entropy(logits.T, shares)) / 2


def soft_cont(student: Tensor, teacher: Tensor, teacher_augmented: Tensor, *, temperature: float = 0.2) -> Tensor:
    """Contrastive loss of a student against what its teacher says of augmented pictures.

    Parameters
    ----------
    student, teacher, teacher_augmented : Tensor of shape (n, f)
        Unit vectors.
    temperature : float
    """
    wanted = _logits(teacher, teacher_augmented, temperature)
    got = _logits(student, teacher_augmented, temperature)
    return (_cross_entropy(got, wanted.softmax(-1)) + _cross_entropy(got.T, wanted.T.softmax(-1))) / 2


def half_cosine(start: float, end: float, progress: float) -> float:
    """Value between `start` and `end` at a progress of 0 to 1, along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def add_noise(schedule: CosineSchedule, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Clean tokens (n, ...) at noise levels `t` (n,)."""
    shape = (-1, *[1] * (clean.ndim - 1))
    signal = torch.from_numpy(schedule.sqrt_alphas_cumprod).to(clean.device)[t].reshape(shape)
    spread = torch.from_numpy(schedule.sqrt_one_minus_alphas_cumprod).to(clean.device)[t].reshape(shape)
    return signal * clean + spread * noise


def draw_keep(n: int, *, generator: torch.Generator, drop: float = DROP) -> Tensor:
    """Which of n samples keep a condition (n,), bool; on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device) >= drop


def prior_loss(
    network: Callable[..., Tensor],
    schedule: CosineSchedule,
    clean: Tensor,
    condition: Tensor,
    *,
    t: Tensor,
    noise: Tensor,
    keep_condition: Tensor | None = None,
    keep_image: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the predicted clean tokens, and the prediction.

    Parameters
    ----------
    network : callable
        As `PriorNetwork.forward`.
    schedule : CosineSchedule
    clean, condition, noise : Tensor of shape (n, tokens, dim)
    t : Tensor of shape (n,), int64
        Noise levels.
    keep_condition, keep_image : Tensor of shape (n,), bool, optional
        As in `PriorNetwork.forward`.
    """
    noisy = add_noise(schedule, clean, t, noise)
    predicted = network(noisy, t, condition, keep_condition=keep_condition, keep_image=keep_image)
    return functional.mse_loss(predicted.float(), clean.float()), predicted


def _logits(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    # Autocast would take the product in half precision again.
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T / temperature


def _cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    return -(logits.log_softmax(-1) * shares).sum(-1).mean()
