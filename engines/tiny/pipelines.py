"""Ways from tokens to pictures that the report compares (torch). Import this module inside functions only."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from engines.tiny.diffusion import LATENT_CHANNELS, LATENT_SIDE, TinyUnclip
from engines.tiny.few_steps import FewSteps
from engines.tiny.students import guided
from engines.tiny.tiny_prior import DiffusionPrior, prior_schedule
from engines.tiny.train import Trained
from rtdecode.decode.sampling.ddpm import count_draws, sample_prior
from rtdecode.decode.sampling.edm import euler, euler_times
from rtdecode.decode.sampling.few import few_times, sample_few

PRIOR_TEACHER_STEPS = 20
UNCLIP_TEACHER_STEPS = 8
PRIOR_STEPS = 2
UNCLIP_STEPS = (1, 2, 4)
TEMPERATURE = 0.5
"""Of the noise that latents start from. Chosen by eye on the pictures of the contact sheet, which are not those
that are measured; at 1 a teacher trained for minutes leaves specks."""
_BATCH = 64

Made = tuple[Tensor, Tensor]
"""Tokens (n, TOKENS, CHANNELS) that pictures were drawn from, and the pictures (n, 3, 64, 64)."""


def reconstruct(trained: Trained, networks: FewSteps, tokens: Tensor, *, brain: bool, seed: int) -> dict[str, Made]:
    """Draw every picture in every way.

    Parameters
    ----------
    trained : Trained
    networks : FewSteps
    tokens : Tensor of shape (n, TOKENS, CHANNELS)
        True ones, or what the commitment makes of a brain's.
    brain : bool
        They are a brain's: the priors are used, and as a baseline none.
    seed : int
        All ways start from the same noise.

    Returns
    -------
    dict
        ``regression``, ``teacher``, ``student_1``, ``student_2``, ``student_4`` and, of a brain,
        ``student_2_no_prior``.
    """
    made: dict[str, list[Made]] = defaultdict(list)
    with torch.no_grad():
        for i, part in enumerate(tokens.split(_BATCH)):
            for way, pair in _part(trained, networks, part, brain, torch.Generator().manual_seed(seed + i)).items():
                made[way].append(pair)
    return {
        way: (torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))
        for way, pairs in made.items()
    }


def _part(trained: Trained, networks: FewSteps, tokens: Tensor, brain: bool, draw: torch.Generator) -> dict[str, Made]:
    noise = TEMPERATURE * torch.randn((len(tokens), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE), generator=draw)
    sampled, by_teacher = tokens, tokens
    if brain:
        sampled = _student_prior(networks.prior, tokens, draw)
        by_teacher = _teacher_prior(networks.prior_teacher, tokens, draw)
    out = {"regression": (tokens, trained.decoder(tokens))}
    out["teacher"] = by_teacher, _pictures(trained, networks, by_teacher, noise, (None,))[0]
    for steps, pictures in zip(UNCLIP_STEPS, _pictures(trained, networks, sampled, noise, UNCLIP_STEPS), strict=True):
        out[f"student_{steps}"] = sampled, pictures
    if brain:
        out["student_2_no_prior"] = tokens, _pictures(trained, networks, tokens, noise, (2,))[0]
    return out


def _levels(n: int, t: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.long)


def _student_prior(prior: DiffusionPrior, tokens: Tensor, draw: torch.Generator) -> Tensor:
    schedule = prior_schedule()
    clean: Tensor = sample_few(
        lambda x, t: prior(x, _levels(len(x), t), tokens),
        torch.randn(tokens.shape, generator=draw),
        schedule.alphas_cumprod,
        few_times(schedule.timesteps, PRIOR_STEPS),
    )
    return prior.natural(clean)


def _teacher_prior(prior: DiffusionPrior, tokens: Tensor, draw: torch.Generator) -> Tensor:
    schedule = prior_schedule()
    draws = count_draws(schedule.timesteps, PRIOR_TEACHER_STEPS)
    noise = [torch.randn(tokens.shape, generator=draw) for _ in range(draws)]
    clean: Tensor = sample_prior(
        lambda x, t: prior(x, _levels(len(x), t), tokens), noise, schedule, steps=PRIOR_TEACHER_STEPS
    )
    return prior.natural(clean)


def _pictures(
    trained: Trained, networks: FewSteps, tokens: Tensor, noise: Tensor, steps: tuple[int | None, ...]
) -> list[Tensor]:
    """Pictures by the student in each number of steps, or by the guided teacher for None."""
    draft = trained.decoder(tokens)
    draft_latent = networks.autoencoder.encode(draft)
    context = networks.unclip.context(tokens)
    pictures = []
    for n in steps:
        times, sigmas = euler_times(n or UNCLIP_TEACHER_STEPS)
        start = noise * float((1 + float(sigmas[0]) ** 2) ** 0.5)
        if n is None:
            latents = euler(
                lambda x, t: _teacher_noise(networks.unclip_teacher, x, t, draft_latent, tokens), start, times, sigmas
            )
        else:
            latents = euler(
                lambda x, t: networks.unclip(x, _levels(len(x), t), draft_latent, context), start, times, sigmas
            )
        pictures.append(networks.autoencoder(latents, draft).float())
    return pictures


def _teacher_noise(unclip: TinyUnclip, x: Tensor, t: int, draft_latent: Tensor, tokens: Tensor) -> Tensor:
    sigma = float(unclip.sigmas[t])
    signal = (1 + sigma**2) ** -0.5
    return (x - signal * guided(unclip, x, _levels(len(x), t), (draft_latent, tokens))) / (sigma * signal)
