"""Inversion of encoding models against dense normal distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from calibration.encoding.encoder import Inverted
from calibration.encoding.inverse import LEAST_NOISE, Noise, chosen_voxels, invert, mixed, noise_models
from calibration.encoding.maps import Maps

K, V = 4, 12


def example(seed: int, rank: int = 3) -> tuple[Maps, Noise, np.ndarray]:
    """Maps, noise, and its dense covariance."""
    rng = np.random.default_rng(seed)
    maps = Maps(
        weights=rng.standard_normal((K, V)).astype(np.float32),
        constant=rng.standard_normal(V).astype(np.float32),
        residuals=rng.standard_normal((20, V)).astype(np.float32),
        unknown=np.zeros(V, np.float32),
    )
    shared = rng.standard_normal((rank, V)).astype(np.float32)
    noise = Noise(shared=shared, own=rng.uniform(0.3, 2, V).astype(np.float32))
    return maps, noise, shared.T.astype(np.float64) @ shared + np.diag(noise.own.astype(np.float64))


def densities(maps: Maps, covariance: np.ndarray, responses: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    means = maps.constant + pictures @ maps.weights
    return np.array([[multivariate_normal.logpdf(y, mean, covariance) for mean in means] for y in responses])


def centred(scores: np.ndarray) -> np.ndarray:
    """Without the constant of each response."""
    return scores - scores.mean(1, keepdims=True)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_whitener_inverts_the_covariance(rank: int) -> None:
    _, noise, covariance = example(0, rank)
    whitener = noise.whitener().astype(np.float64)
    np.testing.assert_allclose(np.diag(1 / noise.own) - whitener.T @ whitener, np.linalg.inv(covariance), atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_scores_are_log_densities_up_to_a_constant_of_the_response(rank: int) -> None:
    maps, noise, covariance = example(1, rank)
    rng = np.random.default_rng(2)
    responses, pictures = rng.standard_normal((5, V)).astype(np.float32), rng.standard_normal((7, K))
    found = invert(maps, noise).scores(responses, pictures)
    np.testing.assert_allclose(centred(found), centred(densities(maps, covariance, responses, pictures)), atol=1e-3)


def test_the_estimator_is_the_posterior_mean() -> None:
    maps, noise, covariance = example(3)
    y = np.random.default_rng(4).standard_normal(V)
    within = maps.weights.T.astype(np.float64) @ maps.weights + covariance
    expected = maps.weights @ np.linalg.solve(within, y - maps.constant)
    found = invert(maps, noise).estimator() @ (y - maps.constant)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_mixture_scores_the_weighted_sum_and_a_tempered_one_the_multiple() -> None:
    maps, noise, _ = example(5)
    few = chosen_voxels(maps, slice(7))
    fewer = Noise(shared=np.zeros((0, 7), np.float32), own=noise.own[:7])
    models = [invert(few, fewer), invert(maps, noise)]
    rng = np.random.default_rng(6)
    responses, pictures = rng.standard_normal((5, V)).astype(np.float32), rng.standard_normal((6, K))
    weights = np.array([0.3, 0.05])
    expected = 0.3 * models[0].scores(responses[:, :7], pictures) + 0.05 * models[1].scores(responses, pictures)
    np.testing.assert_allclose(mixed(models, weights).scores(responses, pictures), expected, atol=1e-3)
    tempered = models[1].tempered(0.2).scores(responses, pictures)
    np.testing.assert_allclose(tempered, 0.2 * models[1].scores(responses, pictures), atol=1e-3)


def test_distances_are_mahalanobis_lengths_a_voxel() -> None:
    maps, noise, covariance = example(7)
    responses = np.random.default_rng(8).standard_normal((4, 20)).astype(np.float32)
    voxels = np.array([3, 0, 5, 7, 19, 11, 2, 4, 8, 1, 6, 9])
    inverted = Inverted(voxels=voxels, inverse=invert(maps, noise), noise=noise)
    own = responses[:, voxels].astype(np.float64)
    expected = np.einsum("nv,vw,nw->n", own, np.linalg.inv(covariance), own) / V
    np.testing.assert_allclose(inverted.distances(responses), expected, rtol=1e-4)


def test_noise_keeps_the_strongest_shared_components_and_every_voxels_variance() -> None:
    rng = np.random.default_rng(9)
    n, v = 60, 30
    residuals = (rng.standard_normal((n, 2)) @ rng.standard_normal((2, v)) + rng.standard_normal((n, v))).astype(
        np.float32
    )
    maps = Maps(
        weights=np.zeros((K, v), np.float32),
        constant=np.zeros(v, np.float32),
        residuals=residuals,
        unknown=np.zeros(v, np.float32),
    )
    none, two = noise_models(maps, [0, 2])
    variance = (np.square(residuals.astype(np.float64)).sum(0) + 4) / (n + 4)  # four trials of variance 1 beforehand
    np.testing.assert_allclose(none.own, variance, rtol=1e-5)
    _, strengths, axes = np.linalg.svd(residuals.astype(np.float64), full_matrices=False)
    leading = 0.95 * strengths[:2, None] * axes[:2] / np.sqrt(n)
    np.testing.assert_allclose(two.shared.T @ two.shared, leading.T @ leading, atol=1e-4)
    total = np.square(two.shared).sum(0) + two.own
    above = two.own > LEAST_NOISE
    np.testing.assert_allclose(total[above], variance[above], rtol=1e-4)
    assert (two.own >= np.float32(LEAST_NOISE)).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_maps_that_err_together_are_noise_along_the_maps(share: float) -> None:
    maps, noise, covariance = example(10)
    weights = maps.weights.astype(np.float64)
    rng = np.random.default_rng(11)
    responses, pictures = rng.standard_normal((5, V)).astype(np.float32), rng.standard_normal((7, K))
    expected = densities(maps, covariance + share * weights.T @ weights, responses, pictures)
    found = invert(maps, noise).blurred(share).scores(responses, pictures)
    np.testing.assert_allclose(centred(found), centred(expected), atol=2e-3)
