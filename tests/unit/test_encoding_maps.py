from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from calibration.encoding import maps
from calibration.encoding.encoder import fit_encoder
from calibration.encoding.inverse import noise_models
from calibration.encoding.maps import MapPrior, fit_maps
from calibration.regression import folds

N, K, V = 30, 5, 12


@pytest.fixture
def one_scale(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let a single scale and trust be compared, so that the posterior is that of one Bayesian model."""
    scale = 0.3
    monkeypatch.setattr(maps, "SCALES", np.array([scale]))
    monkeypatch.setattr(maps, "TRUSTS", (1.0,))
    return scale


def draw(seed: int = 0, n: int = N, v: int = V) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, K))
    responses = features @ (0.6 * rng.standard_normal((K, v))) + rng.standard_normal((n, v)) + 2.0
    return features, responses.astype(np.float32)


def dense_posterior(
    features: np.ndarray, y: np.ndarray, covariance: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the weights of one voxel of noise 1, by the precision matrix; a flat constant is first."""
    design = np.column_stack([np.ones(len(features)), features])
    precision = np.zeros((K + 1, K + 1))
    precision[1:, 1:] = np.linalg.inv(covariance)
    posterior = np.linalg.inv(design.T @ design + precision)
    return posterior @ (design.T @ y + precision @ np.r_[0.0, mean]), posterior


def test_a_voxel_has_the_posterior_of_a_bayesian_ridge(one_scale: float) -> None:
    features, responses = draw()
    rng = np.random.default_rng(1)
    root = rng.standard_normal((K, K))
    covariance = root @ root.T + np.eye(K)
    mean = rng.standard_normal((K, V)).astype(np.float32)
    found = fit_maps(features, responses, MapPrior(covariance=covariance, mean=mean))
    for voxel in range(V):
        expected, spread = dense_posterior(features, responses[:, voxel], one_scale * covariance, mean[:, voxel])
        np.testing.assert_allclose(found.weights[:, voxel], expected[1:], atol=2e-4)
        assert found.constant[voxel] == pytest.approx(expected[0], abs=2e-4)
        assert found.unknown[voxel] == pytest.approx(np.trace(spread[1:, 1:]), rel=1e-3)


def test_a_prior_mean_of_zero_is_no_prior_mean() -> None:
    features, responses = draw()
    prior = MapPrior(covariance=np.eye(K) / K)
    none = fit_maps(features, responses, prior)
    zero = fit_maps(features, responses, MapPrior(covariance=np.eye(K) / K, mean=np.zeros((K, V), np.float32)))
    np.testing.assert_allclose(zero.weights, none.weights, atol=1e-5)
    np.testing.assert_allclose(zero.residuals, none.residuals, atol=1e-5)


def test_a_voxel_that_answers_otherwise_than_expected_is_not_held_to_it() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((60, K))
    expected = rng.standard_normal((K, 200)).astype(np.float32)
    truth = expected.copy()
    truth[:, 100:] = 0
    responses = (features @ truth + rng.standard_normal((60, 200))).astype(np.float32)
    found = fit_maps(features, responses, MapPrior(covariance=np.eye(K) / K, mean=expected))
    error = np.square(found.weights - truth).mean(0)
    plain = np.square(fit_maps(features, responses, MapPrior(covariance=np.eye(K) / K)).weights - truth).mean(0)
    assert error[:100].mean() < 0.5 * plain[:100].mean()
    assert error[100:].mean() < 1.5 * plain[100:].mean()


def test_rest_tells_signal_from_noise_with_few_trials() -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((8, 20))
    truth = rng.standard_normal((20, 500)) * np.sqrt(0.01)
    responses = (features @ truth + rng.standard_normal((8, 500))).astype(np.float32)
    rest = rng.standard_normal((100, 500)).astype(np.float32)
    prior = MapPrior(covariance=np.eye(20))

    def error(found: maps.Maps) -> float:
        return float(np.square(found.weights - truth).mean())

    assert error(fit_maps(features, responses, prior, rest)) < 0.5 * error(fit_maps(features, responses, prior))


def test_the_noise_of_rest_alone_is_its_covariance_and_what_is_unknown() -> None:
    rng = np.random.default_rng(5)
    direction = rng.standard_normal(40)
    rest = np.outer(rng.standard_normal(4000), direction) + rng.standard_normal((4000, 40))
    features = np.zeros((0, K))
    prior = MapPrior(covariance=np.eye(K) / K, constant=np.zeros(40, np.float32), constant_variance=0.0)
    found = fit_maps(features, np.zeros((0, 40), np.float32), prior, rest.astype(np.float32))
    (noise,) = noise_models(found, [1], rest.astype(np.float32))
    modelled = noise.shared.T @ noise.shared + np.diag(noise.own - found.unknown)
    apart = np.abs(modelled - np.cov(rest.T, bias=True))
    assert apart.max() < 0.2 * np.square(direction).max()


def test_decoding_is_the_posterior_of_the_response_when_all_is_known() -> None:
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((K, V)).astype(np.float32)
    prior = MapPrior(covariance=1e-9 * np.eye(K), mean=weights, constant=np.zeros(V, np.float32), constant_variance=0.0)
    rest = rng.standard_normal((400, V)).astype(np.float32)
    pictures = rng.standard_normal((20, K))
    responses = (pictures @ weights + rng.standard_normal((20, V))).astype(np.float32)
    encoder = fit_encoder(
        np.zeros((0, V), np.float32),
        np.zeros((0, K)),
        [
            lambda voxels: MapPrior(
                covariance=prior.covariance,
                mean=weights[:, voxels],
                constant=np.zeros(len(voxels), np.float32),
                constant_variance=0.0,
            )
        ],
        parts=[],
        shown=np.zeros(0, np.int64),
        rest=rest,
    )
    scores = encoder.whole.scores(responses, pictures)
    oracle = np.stack([multivariate_normal(picture @ weights, np.eye(V)).logpdf(responses) for picture in pictures], 1)
    agree = (scores.argmax(1) == oracle.argmax(1)).mean()
    assert agree > 0.8


def test_a_prior_that_is_wrong_costs_little_beside_none() -> None:
    rng = np.random.default_rng(7)
    truth = 0.4 * rng.standard_normal((K, 150))
    wrong = (0.4 * rng.standard_normal((K, 150))).astype(np.float32)
    features, test = rng.standard_normal((60, K)), rng.standard_normal((40, K))
    responses = (features @ truth + rng.standard_normal((60, 150))).astype(np.float32)
    seen = (test @ truth + rng.standard_normal((40, 150))).astype(np.float32)
    plain = MapPrior(covariance=np.eye(K) / K)

    def right(*means: np.ndarray | None) -> float:
        encoder = fit_encoder(
            responses,
            features,
            [
                (lambda voxels, m=m: plain if m is None else MapPrior(covariance=plain.covariance, mean=m[:, voxels]))
                for m in means
            ],
            parts=folds(np.arange(60)),
            shown=np.arange(60),
        )
        return float((encoder.whole.scores(seen, test).argmax(1) == np.arange(40)).mean())

    assert right(wrong, None) >= right(None) - 0.05
