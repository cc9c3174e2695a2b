from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engines.tiny import picture_figures as metrics  # noqa: E402


def pictures(seed: int) -> torch.Tensor:
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


def test_pixel_correlation_is_pearsons() -> None:
    a, b = pictures(0), pictures(1)
    expected = [np.corrcoef(x.numpy().ravel(), y.numpy().ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.pix_corr(a, b).numpy(), expected, atol=1e-5)


def test_structural_similarity_is_that_of_every_window() -> None:
    a, b = pictures(2), pictures(3)
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    grey = [np.tensordot([0.2125, 0.7154, 0.0721], x[0].numpy().astype(float), axes=1) for x in (a, b)]
    values = []
    for i in range(5, 59):
        for j in range(5, 59):
            x, y = (g[i - 5 : i + 6, j - 5 : j + 6] for g in grey)
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            both = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert metrics.ssim(a, b)[0].item() == pytest.approx(np.mean(values), abs=1e-4)
    np.testing.assert_allclose(metrics.ssim(a, a).numpy(), 1, atol=1e-5)


def test_identification_is_counted_within_pools_of_64() -> None:
    truth = torch.eye(128)
    given = truth.clone()
    given[3] = truth[70]  # another pool's picture is no rival
    given[5] = truth[6]
    hits = metrics.identified(given + 1e-3 * torch.eye(128), truth)
    assert hits[5] == 0
    assert hits.sum() == 127
    assert metrics.two_way(given + 1e-3 * torch.eye(128), truth)[4] == 1


def test_the_interval_of_a_mean_covers_it() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 1000)
    low, high = metrics.interval(values)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(1000), rel=0.1)
