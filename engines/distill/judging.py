"""Teacher against student, paired, on pictures that neither training nor choice has seen (torch).

Import this module inside functions only. Both sample from the same condition as a session does it, each as its pack
says: of the prior what the backbone makes of held-out trials, of the unCLIP the tokens that the prior makes of these.
What is made is compared with the held-out pictures: the share of the others that are less like it than its own is its
two-way identification, chance 50 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rtdecode.decode.families.distilled_table import JudgedStudent
from rtdecode.decode.families.mindeye2.recipe import Recipe
from rtdecode.decode.families.mindeye2.unclip_step import UNCLIP_SIZES, size_features
from rtdecode.decode.sampling.edm import euler, euler_times, guide, offset_noise, renoised, timed, unclip_start
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.statistics import bootstrap_interval, percentile_ranks

MOST = 64
"""Pictures that are held out."""
SHARE = 5
"""One picture in so many at most."""
FEWEST = 2
_BATCH = 16
_RESAMPLES = 2000


def held_out(pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose which of some pictures, rows of their file, are not trained on: spread over all of them."""
    known = np.unique(pictures)
    count = min(MOST, max(FEWEST, len(known) // SHARE))
    if len(known) < 2 * FEWEST:
        raise TrainingError(
            f"expected at least {2 * FEWEST} pictures, some of them held out to judge the student, got {len(known)}"
        )
    return known[np.linspace(0, len(known) - 1, count).round().astype(np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """A network and how it is sampled."""

    network: nn.Module
    recipe: Recipe


def prior_tokens(sampled: Sampled, condition: Tensor, timesteps: int, seed: int) -> Tensor:
    """Clean tokens (n, tokens, dim) of conditions; the same seed starts from the same noise."""
    recipe = sampled.recipe
    sampler = prior_sampler(recipe.prior_sampler, cosine_schedule(timesteps), recipe.prior_steps)

    def made(given: Tensor, draw: torch.Generator) -> Tensor:
        noise = torch.randn((sampler.draws, *given.shape), generator=draw).to(given)

        def predict(x: Tensor, t: int) -> Tensor:
            level = torch.full((len(x),), t, device=x.device)
            found: Tensor = sampled.network.guided(x, level, given, cond_scale=recipe.prior_guidance)
            return found

        clean: Tensor = sampler.sample(predict, list(noise))
        return clean

    return _in_batches(made, condition, seed)


def unclip_latents(
    sampled: Sampled, tokens: Tensor, side: int, seed: int, unconditional: Tensor | None = None
) -> Tensor:
    """Latents (n, 4, side, side) of tokens; the same seed starts from the same noise."""
    recipe, network = sampled.recipe, sampled.network
    vector = torch.from_numpy(size_features(UNCLIP_SIZES))[None].to(tokens.device)
    times, sigmas = timed(recipe.unclip_times) if recipe.unclip_times else euler_times(recipe.unclip_steps)

    def made(given: Tensor, draw: torch.Generator) -> Tensor:
        n = len(given)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(given)

        latent, noise, offset = drawn(n, 4, side, side), drawn(n, 4, side, side), drawn(n)
        nothing = drawn(*given.shape) if unconditional is None else unconditional.to(given).expand_as(given)

        def eps(x: Tensor, t: int, condition: Tensor) -> Tensor:
            level = torch.full((n,), t, device=x.device, dtype=torch.int64)
            found: Tensor = network(x, level, condition, vector.expand(n, -1)).float()
            return found

        def predict(x: Tensor, t: int) -> Any:
            wanted = eps(x, t, given)
            return wanted if recipe.unclip_guidance == 1 else guide(wanted, eps(x, t, nothing), recipe.unclip_guidance)

        start = unclip_start(latent, noise, offset, float(sigmas[0]))
        if recipe.unclip_sampler == "euler":
            return euler(predict, start, times, sigmas)
        fresh = [offset_noise(drawn(n, 4, side, side), drawn(n)) for _ in range(len(times) - 1)]
        return renoised(predict, start, fresh, times, sigmas)

    return _in_batches(made, tokens, seed)


def judge(by_teacher: Tensor, by_student: Tensor, truth: Tensor, *, decoded: bool, seed: int) -> JudgedStudent:
    """Compare what both made (n, ...) of the same conditions with the pictures shown (n, ...), all different."""
    ranks = np.stack([_two_way(made, truth) for made in (by_teacher, by_student)])
    lost = 100 * (ranks[0] - ranks[1])
    low, high = bootstrap_interval(lost, np.random.default_rng(seed), resamples=_RESAMPLES)
    return JudgedStudent(
        pictures=len(truth),
        decoded=decoded,
        teacher=float(ranks[0].mean()),
        student=float(ranks[1].mean()),
        points_lost=float(lost.mean()),
        interval=(low, high),
    )


def told(judged: JudgedStudent) -> str:
    """Say it in a line."""
    low, high = judged.interval
    on = "decoded" if judged.decoded else "true"
    return (
        f"on {on} tokens of {judged.pictures} held-out pictures: two-way identification (chance 50%) "
        f"{judged.student:.1%}, its teacher {judged.teacher:.1%}: {judged.points_lost:.1f} points lost "
        f"[{low:.1f} to {high:.1f}]"
    )


def gate(
    judged: JudgedStudent, allowed: float, remedy: str = "train longer, with a lower --rate, or state more points"
) -> None:
    """Let a student pass that lost no more than so many points.

    Raises
    ------
    TrainingError
        It lost more.
    """
    if judged.points_lost > allowed or not np.isfinite(judged.points_lost):
        raise TrainingError(
            f"the student is not sealed: {told(judged)}; expected at most {allowed:g} points (--lose): {remedy}"
        )


def _two_way(made: Tensor, truth: Tensor) -> NDArray[np.float64]:
    a, b = (functional.normalize(values.float().flatten(1) - values.float().mean(), dim=1) for values in (made, truth))
    cosines = torch.nan_to_num(a @ b.T, nan=-1.0).double().cpu().numpy()
    return np.asarray(np.diagonal(percentile_ranks(cosines)))


def _in_batches(made: Any, given: Tensor, seed: int) -> Tensor:
    parts: Sequence[Tensor] = given.split(_BATCH)
    with torch.no_grad():
        return torch.cat([made(part, torch.Generator().manual_seed(seed + i)) for i, part in enumerate(parts)])
