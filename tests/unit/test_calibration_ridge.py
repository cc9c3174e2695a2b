"""The dual ridge against scikit-learn refitted for every left-out group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from calibration.ridge import Kernel, Spectrum, centred, leave_out, penalties


def data(seed: int, n: int, v: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, v)) + rng.standard_normal(v)
    return x, x @ rng.standard_normal((v, k)) / np.sqrt(v) + rng.standard_normal((n, k)) + 3.0


def refitted(x: np.ndarray, y: np.ndarray, groups: np.ndarray, penalty: float) -> np.ndarray:
    out = np.empty_like(y)
    for label in np.unique(groups):
        rest = groups != label
        out[~rest] = Ridge(alpha=penalty).fit(x[rest], y[rest]).predict(x[~rest]).reshape(-1, y.shape[1])
    return out


@given(
    seed=st.integers(0, 1000),
    n=st.integers(8, 20),
    v=st.integers(3, 40),
    k=st.integers(1, 3),
    repeats=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_leave_out_is_exact_and_its_penalty_is_the_best_of_the_grid(
    seed: int, n: int, v: int, k: int, repeats: int
) -> None:
    x, y = data(seed, n, v, k)
    groups = np.arange(n) // repeats
    importance = np.random.default_rng(seed).uniform(0.5, 2, k)
    kernel = centred(x @ x.T)
    held_out, penalty = leave_out(kernel, y, groups, importance)
    np.testing.assert_allclose(held_out, refitted(x, y, groups, penalty), rtol=1e-5, atol=1e-6)
    grid = penalties(Spectrum(kernel, y))
    errors = [(np.square(y - refitted(x, y, groups, float(p))) * importance).sum() for p in grid]
    assert errors[int(np.argmin(np.abs(grid - penalty)))] == pytest.approx(min(errors), rel=1e-6)


def test_without_signal_the_held_out_figure_does_not_flatter() -> None:
    rng = np.random.default_rng(0)
    correlations = []
    for _ in range(40):
        x, y = rng.standard_normal((30, 200)), rng.standard_normal((30, 1))
        held_out, _ = leave_out(centred(x @ x.T), y, np.arange(30), np.ones(1))
        correlations.append(np.corrcoef(held_out[:, 0], y[:, 0])[0, 1])
    assert np.mean(correlations) < 0.05


def test_dual_coefficients_are_the_primal_solution() -> None:
    x, y = data(4, 15, 30, 2)
    spectrum = Spectrum(centred(x @ x.T), y)
    fitted = Ridge(alpha=7.0).fit(x, y)
    weights = (x - x.mean(0)).T @ spectrum.dual(7.0)
    np.testing.assert_allclose(weights, fitted.coef_.T, atol=1e-9)
    np.testing.assert_allclose(spectrum.fitted(7.0), fitted.predict(x), atol=1e-9)
    others, _ = data(5, 4, 30, 2)
    cross = (others - x.mean(0)) @ (x - x.mean(0)).T
    predicted = spectrum.predict(cross, np.array([1.0, 7.0]))
    assert predicted.shape == (2, 4, 2)
    np.testing.assert_allclose(predicted[1], fitted.predict(others), atol=1e-9)


@given(seed=st.integers(0, 100), n=st.integers(1, 70))
@settings(max_examples=20, deadline=None)
def test_a_kernel_grown_row_by_row_is_the_whole_one(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    betas = rng.standard_normal((n, 12)).astype(np.float32)
    scale = rng.uniform(0.5, 2, 12).astype(np.float32)
    kernel = Kernel(scale)
    for beta in betas:
        kernel.append(beta)
    np.testing.assert_allclose(kernel.values, (betas / scale) @ (betas / scale).T, rtol=1e-4, atol=1e-4)


def test_a_voxel_without_an_estimate_counts_as_nothing() -> None:
    kernel = Kernel(np.ones(3, dtype=np.float32))
    kernel.append(np.array([1.0, np.nan, 2.0], dtype=np.float32))
    kernel.append(np.array([3.0, 5.0, np.inf], dtype=np.float32))
    np.testing.assert_allclose(kernel.values, [[5, 3], [3, 34]])


def test_one_group_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="at least two groups"):
        leave_out(np.eye(3), np.zeros((3, 1)), [1, 1, 1], np.ones(1))
