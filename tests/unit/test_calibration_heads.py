"""Linear heads and the shrinkage below them, against naive versions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf

from calibration import regression
from calibration.linear_heads import _precision, discriminant_head, no_head, token_head
from calibration.shrinkage import ledoit_wolf, ledoit_wolf_amount
from calibration.targets import make_targets


@given(seed=st.integers(0, 500), n=st.integers(3, 40), k=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_shrinkage_is_that_of_ledoit_and_wolf(seed: int, n: int, k: int) -> None:
    values = np.random.default_rng(seed).standard_normal((n, k)) * np.arange(1, k + 1)
    expected, share = sklearn_ledoit_wolf(values, assume_centered=True)
    np.testing.assert_allclose(ledoit_wolf(values), expected, rtol=1e-7, atol=1e-9)
    amount, level = ledoit_wolf_amount(values @ values.T / n, k)
    assert amount == pytest.approx(share, rel=1e-7, abs=1e-9)
    assert level == pytest.approx(np.square(values).mean(0).mean())


def naive_discriminant(responses: np.ndarray, category: np.ndarray, n: int, asked: np.ndarray) -> np.ndarray:
    """Scores by an inverse of size (v, v)."""
    x = responses.astype(np.float64)
    means = np.stack([x[category == c].mean(0) if (category == c).any() else x.mean(0) for c in range(n)])
    covariance, _ = sklearn_ledoit_wolf(x - means[category], assume_centered=True)
    precision = np.linalg.inv(covariance)
    return np.array(
        [[m @ precision @ y - 0.5 * m @ precision @ m for m in means - x.mean(0)] for y in asked - x.mean(0)]
    )


@pytest.mark.parametrize(("n", "v"), [(24, 10), (24, 60), (60, 30)])
def test_discriminant_analysis_in_the_span_of_trials_is_that_of_all_voxels(n: int, v: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        category = rng.integers(4, size=n)  # of five: one that no trial shows
        responses = (rng.standard_normal((5, v))[category] + rng.standard_normal((n, v)) + 3).astype(np.float32)
        asked = rng.standard_normal((9, v)) + 3
        found = discriminant_head(responses, category, 5)(np.concatenate([responses, asked.astype(np.float32)]))
        expected = naive_discriminant(responses, category, 5, np.concatenate([responses, asked]))
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
        np.testing.assert_allclose(found[:, 4], 0, atol=2e-3 * np.abs(expected).max())


def test_trials_without_spread_tell_nothing() -> None:
    responses = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    head = discriminant_head(responses, np.repeat(np.arange(3), 2), 3)
    np.testing.assert_array_equal(head(responses), no_head(3, 3)(responses))


@pytest.mark.parametrize("v", [30, 900])
def test_the_token_head_is_a_ridge_and_then_a_comparison(v: int) -> None:
    rng = np.random.default_rng(v)
    n = 48
    tokens = rng.standard_normal((n, 4, 4))
    responses = tokens.reshape(n, 16) @ rng.standard_normal((16, v)) + 3 * rng.standard_normal((n, v))
    responses = ((responses - responses.mean(0)) / responses.std(0)).astype(np.float32)
    targets = make_targets(tokens, (slice(0, 6), slice(6, 16)), most=8)
    k = targets.components.shape[1]
    category, prototypes = rng.integers(3, size=n), rng.standard_normal((3, k))
    groups = np.arange(n)
    choice, held_out = regression.choose(responses, targets, groups, regression.sizes_for(v))
    gain = regression.gains(held_out, targets.components)
    told = gain * held_out
    slope = (told * targets.components).sum(0) / np.square(targets.components).sum(0)
    live = (slope > 0) & (told.std(0) > 0)
    expected = np.where(live, slope, 0) * prototypes
    precision = _precision(told - expected[category], live)
    asked = rng.standard_normal((7, v)).astype(np.float32)
    components = gain * regression.fit(responses, targets, choice)(asked)
    scores = np.array([[m @ precision @ p - 0.5 * m @ precision @ m for m in expected] for p in components])
    found = token_head(responses, targets, groups, category, prototypes)(asked)
    np.testing.assert_allclose(found, scores, atol=1e-3 * np.abs(scores).max())
    assert live.any()


def test_components_that_are_not_predicted_have_no_say_in_the_precision() -> None:
    values = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 5.0, 2.0]
    live = np.array([True, False, True])
    found = _precision(values, live)
    scale = np.sqrt(np.square(values[:, live]).mean(0))
    shrunk, _ = sklearn_ledoit_wolf(values[:, live] / scale, assume_centered=True)
    np.testing.assert_allclose(found[np.ix_(live, live)], np.linalg.inv(shrunk * np.outer(scale, scale)), rtol=1e-6)
    assert not found[1].any()
    assert not found[:, 1].any()
