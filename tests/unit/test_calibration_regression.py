from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from calibration import regression
from calibration.ridge import N_PENALTIES, Spectrum, centred, penalties
from calibration.targets import Targets, make_targets
from rtdecode.errors import CalibrationError

GROUPS = (slice(0, 6), slice(6, 16))


def small(seed: int, n: int = 40, v: int = 60) -> tuple[np.ndarray, Targets, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n, 4, 4)) * np.linspace(2, 0.5, 16).reshape(4, 4)
    betas = np.zeros((n, v))
    betas[:, : v // 3] = tokens.reshape(n, 16) @ rng.standard_normal((16, v // 3))
    betas += 4 * rng.standard_normal((n, v)) + rng.standard_normal(v)
    return betas.astype(np.float32), make_targets(tokens, GROUPS), tokens


def test_targets_are_whitened_components_that_give_the_tokens_back() -> None:
    _, targets, tokens = small(0, n=80)
    z = targets.components
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.square(z).mean(0), 1)
    first, second = targets.blocks
    assert not targets.basis[first, 6:].any()
    assert not targets.basis[second, :6].any()
    np.testing.assert_allclose(z @ targets.basis + targets.token_mean, tokens.reshape(80, 16), atol=1e-10)
    product = targets.basis @ targets.basis.T
    np.testing.assert_allclose(product[first, first], np.diag(targets.variance[first]), atol=1e-10)


def test_targets_of_repeated_stimuli_have_no_empty_components() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((5, 4, 4))[np.arange(30) % 5]
    targets = make_targets(tokens, GROUPS)
    assert [block.stop - block.start for block in targets.blocks] == [4, 4]
    with pytest.raises(CalibrationError, match="same tokens"):
        make_targets(tokens[[0, 0, 0]], GROUPS)


@given(st.lists(st.integers(0, 12), min_size=3, max_size=60))
def test_folds_split_trials_but_no_group(labels: list[int]) -> None:
    groups = np.array(labels)
    folds = regression.folds(groups)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(labels)))
    assert len(folds) <= 8
    owners = [{int(g) for g in groups[fold]} for fold in folds]
    assert sum(len(owner) for owner in owners) == len(set(labels))


def naive(betas: np.ndarray, targets: Targets, groups: np.ndarray, choice: regression.Choice) -> np.ndarray:
    """Select voxels, standardise and fit scikit-learn's ridge anew for every fold and block."""
    z = targets.components
    out = np.empty_like(z)
    for fold in regression.folds(groups):
        rest = np.setdiff1d(np.arange(len(z)), fold)
        x, y = betas[rest].astype(np.float64), z[rest]
        wanted = (y - y.mean(0)) * np.sqrt(targets.variance)
        standard = (x - x.mean(0)) / x.std(0)
        keep = np.arange(x.shape[1])
        if choice.n_voxels is not None:
            keep = np.argsort(-np.square(wanted.T @ standard).sum(0))[: choice.n_voxels]
        grid = penalties(Spectrum(centred(standard[:, keep] @ standard[:, keep].T), y))
        other = ((betas[fold] - x.mean(0)) / x.std(0))[:, keep]
        for block, j in zip(targets.blocks, choice.penalties, strict=True):
            out[fold, block] = Ridge(alpha=grid[j]).fit(standard[:, keep], y[:, block]).predict(other)
    return out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_predictions_are_those_of_refits_without_the_fold(seed: int) -> None:
    betas, targets, _ = small(seed)
    groups = np.arange(40) // 2
    choice, held_out = regression.choose(betas, targets, groups, (None, 10, 20))
    np.testing.assert_allclose(held_out, naive(betas, targets, groups, choice), rtol=1e-3, atol=1e-4)


def test_the_chosen_pair_beats_the_others() -> None:
    betas, targets, _ = small(3)
    groups = np.arange(40)
    _, held_out = regression.choose(betas, targets, groups, (None, 20))
    best = (np.square(held_out - targets.components) * targets.variance).sum()
    for n_voxels in (None, 20):
        for j in range(0, N_PENALTIES, 4):
            other = regression.Choice(n_voxels=n_voxels, penalties=(j, j))
            predicted = naive(betas, targets, groups, other)
            assert best <= (np.square(predicted - targets.components) * targets.variance).sum() + 1e-3


def test_the_fit_is_ridge_on_standardised_voxels() -> None:
    betas, targets, _ = small(4)
    betas[:, 7] = 1.5
    betas[3, 9] = np.nan
    fitted = regression.fit(betas, targets, regression.Choice(n_voxels=None, penalties=(5, 9)))
    assert 7 not in fitted.voxels
    assert 9 not in fitted.voxels
    x = betas[:, fitted.voxels].astype(np.float64)
    standard = (x - x.mean(0)) / x.std(0)
    grid = penalties(Spectrum(centred(standard @ standard.T), targets.components))
    for block, j in zip(targets.blocks, (5, 9), strict=True):
        ridge = Ridge(alpha=grid[j]).fit(standard, targets.components[:, block])
        np.testing.assert_allclose(fitted(betas)[:, block], ridge.predict(standard), atol=1e-3)


def test_a_mask_of_dead_voxels_is_refused() -> None:
    _, targets, _ = small(5)
    with pytest.raises(CalibrationError, match="no voxel varies"):
        regression.fit(np.ones((40, 6), dtype=np.float32), targets, regression.Choice(n_voxels=None, penalties=(0, 0)))
