from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.linear_model import LogisticRegression

from calibration import scoring


@given(seed=st.integers(0, 500), n=st.integers(3, 40), k=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_shrinkage_is_that_of_ledoit_and_wolf(seed: int, n: int, k: int) -> None:
    values = np.random.default_rng(seed).standard_normal((n, k)) * np.arange(1, k + 1)
    expected, _ = sklearn_ledoit_wolf(values, assume_centered=True)
    np.testing.assert_allclose(scoring.ledoit_wolf(values), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_logistic_model_is_the_penalised_maximum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.exponential(3, 300)
    right = rng.random(300) < 1 / (1 + np.exp(1 - 0.6 * x))
    intercept, slope = scoring.fit_logistic(x, right)
    column = np.stack([np.ones(300), x / x.std()], axis=1)
    oracle = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-8).fit(column, right)
    assert intercept == pytest.approx(oracle.coef_[0, 0], abs=1e-3)
    assert slope * x.std() == pytest.approx(oracle.coef_[0, 1], abs=1e-3)


def test_a_margin_that_misleads_gets_no_weight() -> None:
    x = np.linspace(0, 5, 50)
    assert scoring.fit_logistic(x, x < 2.5)[1] == 0


def test_reliability_of_known_noise() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((20_000, 3))
    predicted = np.stack([truth[:, 0], truth[:, 1] + rng.standard_normal(20_000), rng.standard_normal(20_000)], 1)
    found = scoring.reliability(predicted, truth)
    np.testing.assert_allclose(found.gain, [1, 0.5, 0], atol=0.03)
    np.testing.assert_allclose(found.r2, [1, 0.5, 0], atol=0.03)


def test_a_scorer_learns_the_gaussian_that_made_its_predictions() -> None:
    rng = np.random.default_rng(1)
    n, k = 40_000, 3
    prototypes = rng.standard_normal((8, k))
    category = rng.integers(8, size=n)
    truth = prototypes[category] + 0.3 * rng.standard_normal((n, k))
    mixing = np.array([[1.0, 0.5, 0], [0, 0.7, 0], [0.2, 0, 0.9]])
    noise = mixing @ mixing.T
    predicted = 0.6 * truth + rng.multivariate_normal(np.zeros(k), noise, n)
    scorer = scoring.make_scorer(predicted, truth, category, prototypes)
    scores = scorer.candidates(predicted[:5], prototypes)
    expected = np.array([[multivariate_normal.logpdf(p, 0.6 * c, noise) for c in prototypes] for p in predicted[:5]])
    np.testing.assert_allclose(np.diff(scores, axis=1), np.diff(expected, axis=1), atol=0.25)
    by_category = scorer.categories(predicted[:5])
    spread = noise + 0.36 * 0.09 * np.eye(k)
    expected = np.array([[multivariate_normal.logpdf(p, 0.6 * c, spread) for c in prototypes] for p in predicted[:5]])
    np.testing.assert_allclose(np.diff(by_category, axis=1), np.diff(expected, axis=1), atol=0.25)


def test_components_without_signal_have_no_say() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((100, 2))
    predicted = np.stack([0.8 * truth[:, 0] + 0.3 * rng.standard_normal(100), np.zeros(100)], 1)
    scorer = scoring.make_scorer(predicted, truth, np.zeros(100, dtype=np.int64), np.zeros((2, 2)))
    candidates = np.array([[1.0, -5.0], [1.0, 9.0]])
    first, second = scorer.candidates(predicted[:1], candidates)[0]
    assert first == pytest.approx(second)


def test_evidence_is_chance_where_identification_is_not_above_it() -> None:
    rng = np.random.default_rng(4)
    predicted, truth = rng.standard_normal((60, 4)), rng.standard_normal((60, 4))
    category = rng.integers(8, size=60)
    scorer = scoring.make_scorer(predicted, truth, category, rng.standard_normal((8, 4)))
    scores = scorer.categories(predicted)
    silent = scoring.make_evidence(scores, category, predicted, scorer, 0.2, rng)
    assert silent.probability(1e6, 1 / 8) == 1 / 8
    speaking = scoring.make_evidence(scores, scores.argmax(1), predicted, scorer, 0.001, rng)
    assert speaking.probability(float(np.ptp(scores)), 1 / 8) > 0.8
