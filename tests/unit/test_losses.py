"""What the objectives must do beyond the published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.training.losses import (
    Mix,
    bimixco,
    contrastive_features,
    draw_keep,
    draw_mix,
    join_mixes,
    mix_voxels,
    soft_clip,
    soft_cont,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixes_of_several_participants_stay_among_their_own_samples() -> None:
    sizes = (5, 3, 8)
    mixes = [draw_mix(n, generator=seeded(i), threshold=1.0) for i, n in enumerate(sizes)]
    joined = join_mixes(mixes)
    voxels = torch.randn(sum(sizes), 4, generator=seeded(9))
    want = [mix_voxels(part, mix) for part, mix in zip(voxels.split(sizes), mixes, strict=True)]
    torch.testing.assert_close(mix_voxels(voxels, joined), torch.cat(want))
    start = 0
    for n in sizes:
        assert sorted(joined.perm[start : start + n].tolist()) == list(range(start, start + n))
        start += n


def test_shares_of_a_mix_follow_the_beta_distribution() -> None:
    mix = draw_mix(20_000, generator=seeded(0))
    chosen = mix.betas[mix.select].numpy()
    # Mean 1/2; variance 1 / (4 (2 a + 1)) of Beta(a, a) at a = .15.
    assert abs(chosen.mean() - 0.5) < 4 * np.sqrt(1 / (4 * 1.3) / len(chosen))
    assert chosen.var() == pytest.approx(1 / (4 * 1.3), rel=0.05)
    assert (mix.betas[~mix.select] == 1).all()
    assert abs(mix.select.float().mean().item() - 0.5) < 4 * 0.5 / np.sqrt(20_000)


def test_equal_seeds_mix_alike() -> None:
    first, second = (draw_mix(32, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first.perm, second.perm)
    assert torch.equal(first.betas, second.betas)
    assert torch.equal(first.select, second.select)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_stay_finite_in_half_precision_at_the_published_temperatures(dtype: torch.dtype) -> None:
    n = 16
    tokens = 40 * torch.randn(n, 8, 32, generator=seeded(1))
    target = contrastive_features(tokens.to(dtype))
    assert target.dtype == torch.float32
    predicted = contrastive_features((tokens + torch.randn(tokens.shape, generator=seeded(2))).to(dtype))
    mix = draw_mix(n, generator=seeded(3))
    with torch.autocast("cpu", dtype=dtype):
        losses = [
            bimixco(predicted, target, temperature=0.006, mix=mix),
            soft_clip(predicted, target, temperature=0.004),
            soft_cont(predicted, target, target, temperature=0.2),
        ]
    outside = [
        bimixco(predicted, target, temperature=0.006, mix=mix),
        soft_clip(predicted, target, temperature=0.004),
        soft_cont(predicted, target, target, temperature=0.2),
    ]
    for loss, same in zip(losses, outside, strict=True):
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        torch.testing.assert_close(loss, same)


def test_a_mix_that_selects_nobody_is_the_plain_contrastive_loss() -> None:
    predicted, target = (contrastive_features(torch.randn(6, 3, 4, generator=seeded(s))) for s in (5, 6))
    perm = torch.tensor([1, 2, 3, 4, 5, 0])
    mix = Mix(perm=perm, betas=torch.ones(6), select=torch.zeros(6, dtype=torch.bool))
    torch.testing.assert_close(
        bimixco(predicted, target, temperature=0.1, mix=mix), bimixco(predicted, target, temperature=0.1)
    )


def test_conditions_are_dropped_at_the_asked_rate() -> None:
    keep = draw_keep(20_000, generator=seeded(0), drop=0.2)
    assert abs(keep.float().mean().item() - 0.8) < 4 * np.sqrt(0.16 / 20_000)
