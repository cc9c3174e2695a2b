"""Components found in blocks and their ridge, against SVD, scikit-learn and refitting without each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Peer

from engines.embed.components import Components, Float64, fit_ridge, principal
from rtdecode.errors import TrainingError

N, WIDTH = 20, 60


def components(rows: Float64, *, most: int = 512, step: int = 7, dtype: Any = np.float32) -> Components:
    def blocks() -> Iterator[Float64]:
        for at in range(0, rows.shape[1], step):
            yield rows[:, at : at + step].copy()

    return principal(blocks, (rows.shape[0], rows.shape[1]), most=most, dtype=dtype)


@pytest.fixture
def rows() -> Float64:
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, WIDTH)) * np.linspace(3, 0.1, WIDTH) + rng.normal(size=WIDTH)


@pytest.fixture
def targets(rows: Float64) -> Float64:
    rng = np.random.default_rng(1)
    return rows @ rng.normal(size=(WIDTH, 4)) * 0.2 + rng.normal(scale=2, size=(N, 4)) + 5


@pytest.mark.parametrize("most", [6, 512])
def test_components_are_those_of_an_svd(rows: Float64, most: int) -> None:
    found = components(rows, most=most)
    left, sizes, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    k = min(most, N - 1)
    assert found.basis.shape == (k, WIDTH)
    assert found.basis.dtype == np.float32
    np.testing.assert_allclose(found.values, sizes[:k] ** 2, rtol=1e-9)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.vectors.T @ left[:, :k]), np.eye(k), atol=1e-8)
    np.testing.assert_allclose(np.abs(found.basis @ right[:k].T), np.eye(k), atol=1e-5)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(k), atol=1e-5)
    # scores are what the rows give on the basis
    np.testing.assert_allclose((rows - rows.mean(0)) @ found.basis.T, found.vectors * sizes[:k], atol=1e-4)


@pytest.mark.parametrize("step", [1, 13, WIDTH])
def test_the_size_of_blocks_changes_nothing(rows: Float64, targets: Float64, step: int) -> None:
    one, other = components(rows, most=5), components(rows, most=5, step=step)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-10)
    first, second = (fit_ridge(found, targets) for found in (one, other))
    assert first.penalty == pytest.approx(second.penalty, rel=1e-9)
    assert first.held_out_r2 == pytest.approx(second.held_out_r2, rel=1e-9)
    np.testing.assert_allclose(one.basis.T @ first.weights, other.basis.T @ second.weights, atol=1e-6)


def test_rows_that_repeat_give_fewer_components(rows: Float64) -> None:
    repeated = np.concatenate([rows[:9], rows[:9], rows[:9]])
    found = components(repeated)
    assert len(found.values) == 8
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("most", [6, 512])
def test_held_out_figures_are_those_of_refitting(rows: Float64, targets: Float64, most: int) -> None:
    found = components(rows, most=most)
    ridge = fit_ridge(found, targets)
    scores = found.vectors * np.sqrt(found.values)
    peer = Peer(alpha=ridge.penalty).fit(scores, targets)
    np.testing.assert_allclose(ridge.weights, peer.coef_.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ridge.intercept, peer.intercept_, rtol=1e-9)

    def refitted(penalty: float) -> float:
        error = 0.0
        for i in range(N):
            others = np.arange(N) != i
            guess = Peer(alpha=penalty).fit(scores[others], targets[others]).predict(scores[i : i + 1])
            error += float(np.square(guess - targets[i]).sum())
        return error

    total = np.square(targets - targets.mean(0)).sum()
    assert ridge.held_out_r2 == pytest.approx(1 - refitted(ridge.penalty) / total, rel=1e-7)
    assert 0 < ridge.held_out_r2 < 1
    near = 10 ** (1 / 3)
    assert refitted(ridge.penalty) <= min(refitted(ridge.penalty * near), refitted(ridge.penalty / near))


def test_without_a_relation_the_figure_is_not_above_nothing(rows: Float64) -> None:
    noise = np.random.default_rng(3).normal(size=(N, 50))
    assert fit_ridge(components(rows), noise).held_out_r2 < 0.05


def test_rows_or_targets_that_are_all_the_same_are_refused(rows: Float64) -> None:
    with pytest.raises(TrainingError, match="expected pictures that differ in their tokens, got 9 with the same"):
        components(np.tile(rows[:1], (9, 1)))
    with pytest.raises(TrainingError, match="expected ridge outputs that differ between pictures"):
        fit_ridge(components(rows), np.full((N, 3), 0.1))
