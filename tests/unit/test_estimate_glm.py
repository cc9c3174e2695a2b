"""Weights against naive least squares on explicitly whitened, explicitly augmented rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.glm.first_level import make_first_level_design_matrix, run_glm

from rtdecode.estimate.glm import Design, Scales, apply_weights, single_trial_design, weights, whiten, whiten_transposed

SCALES = Scales(trial=0.5, mean=0.2, drift_per_s=0.01, motion_per_mm2=2.0, rho=0.3)


def naive_whitener(rows: np.ndarray, rho: float) -> np.ndarray:
    """Cholesky factor of the inverse covariance of AR(1) noise, independent across gaps."""
    t = len(rows)
    covariance = np.zeros((t, t))
    start = 0
    for stop in range(1, t + 1):
        if stop == t or rows[stop] != rows[stop - 1] + 1:
            length = stop - start
            lags = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
            covariance[start:stop, start:stop] = rho**lags / (1 - rho**2)
            start = stop
    return np.linalg.cholesky(np.linalg.inv(covariance)).T


def naive_fit(design: Design, rho: float, series: np.ndarray) -> np.ndarray:
    """All coefficients by least squares on stacked rows."""
    whitener = naive_whitener(design.rows, rho)
    matrix = np.vstack([whitener @ design.columns, np.diag(np.sqrt(design.precision))])
    data = np.vstack([whitener @ series, np.zeros((len(design.precision), series.shape[1]))])
    return np.linalg.lstsq(matrix, data, rcond=None)[0]


@st.composite
def designs(draw: st.DrawFn) -> tuple[Design, list[int], float, np.random.Generator]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = draw(st.integers(25, 60))
    rows = np.flatnonzero(rng.random(length) > draw(st.sampled_from([0.0, 0.1, 0.4])))
    n = draw(st.integers(1, 5))
    trials = np.zeros((len(rows), n))
    for j in range(n):
        on = rng.integers(0, length - 6)
        trials[:, j] = np.exp(-0.5 * ((rows - on - 4) / 2.0) ** 2)
    k = np.arange(1, 4)
    drift = np.cos(np.pi / length * (rows[:, None] + 0.5) * k) / k
    motion = rng.standard_normal((len(rows), 6)) * 0.1
    scales = draw(
        st.sampled_from([SCALES, Scales(trial=20.0, mean=1e3, drift_per_s=1.0, motion_per_mm2=50.0, rho=0.6)])
    )
    design, columns = single_trial_design(rows, drift, motion, trials, scales)
    return design, columns, draw(st.sampled_from([0.0, scales.rho])), rng


@settings(max_examples=60, deadline=None)
@given(designs())
def test_weights_equal_naive_least_squares(
    case: tuple[Design, list[int], float, np.random.Generator],
) -> None:
    design, columns, rho, rng = case
    series = rng.standard_normal((len(design.rows), 7))
    expected = naive_fit(design, rho, series)[columns]
    got = weights(design, columns, rho) @ series
    assert np.abs(got - expected).max() <= 1e-10 * max(np.abs(expected).max(), 1e-3)


@settings(max_examples=60, deadline=None)
@given(designs())
def test_weights_ignore_the_level(case: tuple[Design, list[int], float, np.random.Generator]) -> None:
    design, columns, rho, _ = case
    functional = weights(design, columns, rho)
    np.testing.assert_allclose(functional.sum(1), 0.0, atol=1e-10 * np.abs(functional).sum(1).max())


def test_plain_model_equals_nilearn() -> None:
    rng = np.random.default_rng(0)
    rows = np.arange(120)
    times = (rows + 0.5) * 2.0
    events = pd.DataFrame({"onset": [10.0, 60, 110, 160], "duration": 8.0, "trial_type": ["a", "b", "c", "d"]})
    matrix = make_first_level_design_matrix(
        times, events, drift_model="cosine", high_pass=0.008, add_regs=rng.standard_normal((120, 6))
    )
    series = 1000 + rng.standard_normal((120, 50)).cumsum(0)
    labels, results = run_glm(series, matrix.to_numpy(), noise_model="ols")
    names = list(matrix.columns)
    targets = [names.index(name) for name in "abcd"]
    expected = results[labels[0]].theta[targets]
    design = Design(rows=rows, columns=matrix.to_numpy(), precision=np.zeros(len(names)))
    got = weights(design, targets) @ series
    assert np.abs(got - expected).max() <= 1e-11 * np.abs(expected).max()


def test_flat_priors_are_least_squares_with_all_trials_at_once() -> None:
    rng = np.random.default_rng(1)
    drift, motion, trials = (rng.standard_normal((40, n)) for n in (2, 6, 5))
    design, columns = single_trial_design(np.arange(40), drift, motion, trials, None)
    series = rng.standard_normal((40, 3))
    matrix = np.hstack([np.ones((40, 1)), drift, motion, trials])
    np.testing.assert_allclose(
        weights(design, columns) @ series, np.linalg.lstsq(matrix, series, rcond=None)[0][-5:], atol=1e-12
    )


def test_shrinkage_is_the_conditional_mean_of_a_gaussian() -> None:
    """The same functional from covariances: E[b | y] = Cov(b, y) Cov(y)^-1 y, the level's variance huge."""
    rng = np.random.default_rng(2)
    drift, motion, trials = (rng.standard_normal((40, n)) for n in (2, 6, 5))
    rows = np.arange(40)
    design, columns = single_trial_design(rows, drift, motion, trials, SCALES)
    whitener = naive_whitener(rows, SCALES.rho)
    total = trials.sum(1)
    covariance = np.linalg.inv(whitener.T @ whitener) + 1e6 * np.ones((40, 40))
    covariance += SCALES.drift_per_s * drift @ drift.T + SCALES.motion_per_mm2 * motion @ motion.T
    covariance += SCALES.trial * trials @ trials.T + SCALES.mean * np.outer(total, total)
    expected = SCALES.trial * trials.T @ np.linalg.inv(covariance)
    np.testing.assert_allclose(weights(design, columns, SCALES.rho), expected, atol=1e-6)


def test_applying_weights_is_a_product_in_float64() -> None:
    rng = np.random.default_rng(3)
    functionals = rng.standard_normal((3, 40))
    series = rng.standard_normal((40, 2500)).astype(np.float32)
    np.testing.assert_allclose(apply_weights(functionals, series), functionals @ series.astype(np.float64), atol=1e-12)


def test_singular_designs_are_refused() -> None:
    design, columns = single_trial_design(np.arange(6), np.zeros((6, 0)), np.zeros((6, 0)), np.ones((6, 2)), None)
    with pytest.raises(np.linalg.LinAlgError, match="singular design"):
        weights(design, columns)
    empty = Design(rows=np.arange(6), columns=np.zeros((6, 1)), precision=np.zeros(1))
    with pytest.raises(np.linalg.LinAlgError, match="zero"):
        weights(empty, [0])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 2, 3, 7, 8, 9], [5]])
def test_whitening_is_a_root_of_the_inverse_covariance(rows: list[int]) -> None:
    index = np.array(rows)
    operator = whiten(np.eye(len(rows)), index, 0.4)
    naive = naive_whitener(index, 0.4)
    np.testing.assert_allclose(operator.T @ operator, naive.T @ naive, atol=1e-12)
    np.testing.assert_allclose(whiten_transposed(np.eye(len(rows)), index, 0.4), operator.T, atol=1e-15)
