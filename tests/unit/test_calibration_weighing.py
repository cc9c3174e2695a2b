"""Weights of heads, and how sure a lead is, against other optimisers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from calibration.weighing import fit_logistic, weigh, weighed_apart

N, C = 160, 4


def heads(seed: int, *sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (h, n, c) that point to the true category so sharply, and the categories."""
    rng = np.random.default_rng(seed)
    category = rng.integers(C, size=N)
    scores = np.stack([s * np.eye(C)[category] + rng.standard_normal((N, C)) for s in sharpness])
    return scores, category


def surprise(weights: np.ndarray, scores: np.ndarray, category: np.ndarray) -> float:
    logs = log_softmax(np.tensordot(weights, scores, 1), axis=1)
    return float(-logs[np.arange(len(category)), category].sum())


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_the_penalised_maximum(seed: int) -> None:
    scores, category = heads(seed, 1.5, 0.8, 0.3)
    scores *= np.array([0.1, 1.0, 30.0])[:, None, None]  # heads differ in how sure they are

    def alone(one: np.ndarray) -> float:
        found = minimize_scalar(
            lambda w: surprise(np.array([w]), one[None], category), bounds=(0, 50), method="bounded"
        )
        return float(found.x)

    unit = np.array([alone(one) for one in scores])

    def loss(relative: np.ndarray) -> float:
        away = relative - [1, 0, 0]
        return surprise(unit * relative, scores, category) + 0.5 * 20 * float(away @ away)

    tries = [
        minimize(loss, start, method="SLSQP", bounds=[(0, None)] * 3, options={"ftol": 1e-12})
        for start in ([0.1, 0.1, 0.1], [2.0, 2.0, 2.0])
    ]
    found = weigh(scores, category) / unit
    assert loss(found) <= min(one.fun for one in tries) + 1e-3
    np.testing.assert_allclose(found, min(tries, key=lambda one: one.fun).x, atol=0.02)


def test_a_single_head_of_two_categories_is_a_logistic_regression() -> None:
    rng = np.random.default_rng(7)
    category = rng.integers(2, size=400)
    lead = 0.7 * (2 * category - 1) + rng.standard_normal(400)
    scores = np.column_stack([-lead / 2, lead / 2])[None]
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(lead[:, None], category)
    assert weigh(scores, category)[0] == pytest.approx(oracle.coef_[0, 0], rel=1e-3)


def test_a_useless_head_gets_next_to_no_weight_and_a_misleading_one_none() -> None:
    scores, category = heads(1, 2.0, 0.0, -2.0)
    good, useless, misleading = weigh(scores, category)
    assert good > 0.5
    assert useless < 0.2
    assert misleading == 0


def test_a_folds_own_trials_do_not_enter_its_weights() -> None:
    scores, category = heads(2, 1.0, 0.8)
    parts = np.array_split(np.arange(N), 4)
    before = weighed_apart(scores, category, parts)
    named = category.copy()
    named[parts[1]] = (named[parts[1]] + 1) % C
    after = weighed_apart(scores, named, parts)
    np.testing.assert_array_equal(before[parts[1]], after[parts[1]])
    rest = np.setdiff1d(np.arange(N), parts[1])
    assert not np.array_equal(before[rest], after[rest])
    expected = np.tensordot(weigh(scores[:, rest], category[rest]), scores[:, parts[1]], 1)
    np.testing.assert_array_equal(before[parts[1]], expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_logistic_model_is_the_penalised_maximum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.exponential(3, 300)
    right = rng.random(300) < 1 / (1 + np.exp(1 - 0.6 * x))
    intercept, slope = fit_logistic(x, right)
    column = np.stack([np.ones(300), x / x.std()], axis=1)
    oracle = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-8).fit(column, right)
    assert intercept == pytest.approx(oracle.coef_[0, 0], abs=1e-3)
    assert slope * x.std() == pytest.approx(oracle.coef_[0, 1], abs=1e-3)


def test_a_margin_that_misleads_gets_no_weight() -> None:
    x = np.linspace(0, 5, 50)
    assert fit_logistic(x, x < 2.5)[1] == 0
