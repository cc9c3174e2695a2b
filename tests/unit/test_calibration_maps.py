"""Voxel-wise maps against dense Gaussians, scikit-learn and refits, one voxel at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression, Ridge

from calibration.encoding import maps
from calibration.encoding.maps import MapPrior, fit_maps

Matrix = np.ndarray


def example(seed: int, n: int = 24, k: int = 5, v: int = 3) -> tuple[Matrix, Matrix, Matrix]:
    """Features (n, k), responses (n, v) and a full covariance (k, k)."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, k)) + rng.standard_normal(k)
    responses = features @ rng.standard_normal((k, v)) + 2 * rng.standard_normal((n, v)) + 1
    root = rng.standard_normal((k, k)) + 2 * np.eye(k)
    return features, responses.astype(np.float32), root @ root.T / k


def prior_of(seed: int, covariance: Matrix, v: int = 3) -> MapPrior:
    rng = np.random.default_rng(seed)
    return MapPrior(
        covariance=covariance,
        mean=rng.standard_normal((len(covariance), v)).astype(np.float32),
        constant=rng.standard_normal(v).astype(np.float32),
        constant_variance=0.7,
    )


def dense(features: Matrix, responses: Matrix, prior: MapPrior, scale: float) -> tuple[Matrix, Matrix]:
    """Posterior mean of weights and constant by one dense Gaussian a voxel."""
    design = np.column_stack([features, np.ones(len(features))])
    weights = np.empty((design.shape[1], responses.shape[1]))
    for voxel, y in enumerate(responses.T.astype(np.float64)):
        before = np.zeros(design.shape[1])
        if prior.mean is not None:
            before[:-1] = prior.mean[:, voxel]
        if prior.constant is not None:
            before[-1] = prior.constant[voxel]
        variance = min(prior.constant_variance, 1e9)
        covariance = np.zeros((len(before), len(before)))
        covariance[:-1, :-1] = scale * prior.covariance
        covariance[-1, -1] = variance
        precision = np.linalg.inv(covariance) + design.T @ design
        weights[:, voxel] = before + np.linalg.solve(precision, design.T @ (y - design @ before))
    return weights[:-1], weights[-1]


@pytest.fixture
def one_scale(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(maps, "SCALES", np.array([0.25]))
    monkeypatch.setattr(maps, "TRUSTS", (1.0,))
    return 0.25


@pytest.mark.parametrize("known", [False, True])
def test_weights_and_constant_are_those_of_a_dense_gaussian(one_scale: float, known: bool) -> None:
    for seed in range(5):
        features, responses, covariance = example(seed)
        prior = prior_of(seed, covariance) if known else MapPrior(covariance=covariance)
        found = fit_maps(features, responses, prior)
        weights, constant = dense(features, responses, prior, one_scale)
        np.testing.assert_allclose(found.weights, weights, atol=2e-4)
        np.testing.assert_allclose(found.constant, constant, atol=2e-4)


def test_an_even_prior_is_ridge_regression(one_scale: float) -> None:
    features, responses, _ = example(0)
    found = fit_maps(features, responses, MapPrior(covariance=np.eye(5)))
    oracle = Ridge(alpha=1 / one_scale).fit(features, responses)
    np.testing.assert_allclose(found.weights, oracle.coef_.T, atol=1e-4)
    np.testing.assert_allclose(found.constant, oracle.intercept_, atol=1e-4)


def test_a_very_wide_prior_is_least_squares(one_scale: float) -> None:
    features, responses, _ = example(1)
    found = fit_maps(features, responses, MapPrior(covariance=1e8 * np.eye(5)))
    oracle = LinearRegression().fit(features, responses)
    np.testing.assert_allclose(found.weights, oracle.coef_.T, atol=1e-3)
    np.testing.assert_allclose(found.constant, oracle.intercept_, atol=1e-3)


@pytest.mark.parametrize("known", [False, True])
def test_residuals_are_those_of_fits_without_the_trial(one_scale: float, known: bool) -> None:
    features, responses, covariance = example(2, n=12)
    prior = prior_of(2, covariance) if known else MapPrior(covariance=covariance)
    residuals = fit_maps(features, responses, prior).residuals
    for trial in range(12):
        rest = np.arange(12) != trial
        weights, constant = dense(features[rest], responses[rest], prior, one_scale)
        expected = responses[trial] - features[trial] @ weights - constant
        np.testing.assert_allclose(residuals[trial], expected, atol=3e-4)


@given(seed=st.integers(0, 200), n=st.integers(4, 20), k=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_marginal_likelihoods_are_those_of_normal_responses_with_the_best_noise(seed: int, n: int, k: int) -> None:
    features, responses, covariance = example(seed, n=n, k=k)
    prior = prior_of(seed, covariance)
    largest = slice(-len(maps.SCALES), None)  # the largest factor of the mean
    found = maps._Evidence(features, responses, prior, None).likelihood[largest]
    expected = np.empty_like(found)
    for voxel in range(3):
        y = (
            responses[:, voxel].astype(np.float64)
            - prior.constant[voxel]
            - maps.TRUSTS[-1] * features @ prior.mean[:, voxel]
        )
        for i, scale in enumerate(maps.SCALES):
            shape = np.eye(n) + 0.7 + scale * features @ covariance @ features.T
            noise = y @ np.linalg.solve(shape, y) / n
            expected[i, voxel] = multivariate_normal.logpdf(y, np.zeros(n), noise * shape)
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-3, atol=5e-3)


def test_without_trials_maps_are_those_of_the_prior(one_scale: float) -> None:
    features, responses, covariance = example(6)
    prior = prior_of(6, covariance)
    found = fit_maps(features[:0], responses[:0], prior)
    np.testing.assert_allclose(found.weights, prior.mean, atol=1e-6)
    np.testing.assert_allclose(found.constant, prior.constant, atol=1e-6)
    assert found.residuals.shape == (0, 3)


def test_voxels_that_answer_to_pictures_are_the_most_responsive() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((80, 6))
    responses = rng.standard_normal((80, 40)).astype(np.float32)
    responses[:, :10] += features @ rng.standard_normal((6, 10)).astype(np.float32)
    gain = np.square(fit_maps(features, responses, MapPrior(covariance=np.eye(6) / 6)).weights).sum(0)
    assert set(np.argsort(-gain)[:10]) == set(range(10))
    assert np.median(gain[10:]) < 0.1 * np.median(gain[:10])


def test_scales_are_learned_over_all_voxels() -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((60, 4))
    truth = np.sqrt(0.5) * rng.standard_normal((4, 300))
    silent = np.repeat([0.0, 1.0], 150)
    responses = (features @ (truth * silent) + rng.standard_normal((60, 300))).astype(np.float32)
    found = fit_maps(features, responses, MapPrior(covariance=np.eye(4)))
    error = np.square(found.weights - truth * silent).mean(0)
    naive = np.square(LinearRegression().fit(features, responses).coef_.T - truth * silent).mean(0)
    assert error[:150].mean() < 0.2 * naive[:150].mean()
    assert error[150:].mean() < 1.05 * naive[150:].mean()


def test_blocks_of_voxels_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, responses, covariance = example(5, v=11)
    prior = prior_of(5, covariance, v=11)
    whole = fit_maps(features, responses, prior)
    monkeypatch.setattr(maps, "_BLOCK", 4)
    parts = fit_maps(features, responses, prior)
    for name in ("weights", "constant", "residuals"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5)
