"""The learning curve: chance where there is nothing to find, and near the fitted decoder where there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, kstest
from sklearn.linear_model import Ridge

from calibration import curve_point, identification, regression
from calibration.calibrator import Calibrator
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs.participant_bundle import CurvePoint
from tests.decode_small import tiny_categories

N_SETS, N_MODELS = 200, 40


def stimuli(n: int, rng: np.random.Generator) -> Candidates:
    """Stimuli with tokens that have a common mean, as those of pictures do."""
    categories = tiny_categories()
    tokens = rng.standard_normal((n, 2, 6)) + 0.3
    return replace(
        categories,
        names=tuple(str(i) for i in range(n)),
        tokens=tokens.astype(np.float32),
        category=np.arange(n) % 8,
        prototypes=tokens[np.arange(8) % n].astype(np.float32),
        groups=(slice(0, 12),),
    )


def shown(n: int, design: str, rng: np.random.Generator) -> np.ndarray:
    if design == "by run":
        return np.concatenate([rng.permutation(8) for _ in range(-(-n // 8))])[:n]
    if design == "repeated":
        return rng.permutation(np.concatenate([np.arange(n // 2), rng.integers(n // 2, size=n - n // 2)]))
    return rng.permutation(n)


def noise(seed: int, n: int, design: str, n_voxels: int = 60) -> CurvePoint:
    """Calibrate on betas with a response common to all trials and drift, which tell nothing of what was shown."""
    rng = np.random.default_rng(seed)
    order = shown(n, design, rng)
    calibrator = Calibrator(stimuli(int(order.max()) + 1, rng), leave_out="run" if design == "by run" else "trial")
    walk = 0.2 * np.cumsum(rng.standard_normal((n, n_voxels)), axis=0)
    betas = rng.standard_normal(n_voxels) + walk + rng.standard_normal((n, n_voxels))
    for i, (beta, stimulus) in enumerate(zip(betas, order, strict=True)):
        calibrator.add(beta, trial=f"t{i}", stimulus=str(stimulus), run=1 + i // 8)
    return calibrator.status()


def by_ridge_alone(
    responses: object,
    components: object,
    priors: object,
    shown: object,
    parts: object,
    n: int,
    null: identification.Null,
    found: float,
    *_: object,
) -> CurvePoint:
    """Stand in for the encoding model: the figure that the null is of."""
    return CurvePoint(trials=n, percentile=found, interval=null.interval(found), p_value=null.p_value(found))


@pytest.mark.parametrize("design", ["by trial", "repeated", "by run"])
@pytest.mark.parametrize("n", [20, 40, 80])
def test_noise_is_at_the_chance_that_is_printed(n: int, design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "N_SHUFFLES", 199)
    monkeypatch.setattr(curve_point, "_standing", by_ridge_alone)
    found = [noise(seed, n, design) for seed in range(N_SETS)]
    assert np.mean([status.percentile for status in found]) == pytest.approx(0.5, abs=0.02)
    covered = sum(status.interval[0] <= 0.5 <= status.interval[1] for status in found)
    assert binom.ppf(0.001, N_SETS, 0.95) <= covered <= binom.ppf(0.999, N_SETS, 0.95)
    assert kstest([status.p_value for status in found], "uniform").pvalue > 0.001


@pytest.mark.parametrize("design", ["by trial", "repeated", "by run"])
def test_the_encoding_model_is_at_chance_on_noise(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "N_SHUFFLES", 99)
    found = [noise(seed, 40, design) for seed in range(N_MODELS)]
    assert np.mean([status.percentile for status in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([status.two_way for status in found]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([status.top1 - status.top1_chance for status in found]) == pytest.approx(0, abs=0.03)
    covered = sum(status.interval[0] <= 0.5 <= status.interval[1] for status in found)
    assert covered >= binom.ppf(0.001, N_MODELS, 0.95)
    assert not any(status.advice == "enough" for status in found)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2], [1, 0, 1, 1, 0]])
def test_all_orders_of_a_folds_labels_have_a_mean_of_exactly_chance(labels: list[int]) -> None:
    scores = np.random.default_rng(0).standard_normal((5, 5))  # of each trial under each stimulus
    orders = np.array(list(itertools.permutations(labels)))
    values = identification.pooled([(scores[:, orders].transpose(1, 0, 2), orders)])
    assert values.shape == (120,)
    assert values.mean() == pytest.approx(0.5, abs=1e-12)


def test_a_share_of_comparisons_is_counted_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 3.0], [0.0, 5.0, 9.0], [1.0, 1.0, 1.0]])
    # rows against the others: win and tie, win and loss, two ties
    assert identification.pooled([(scores, np.arange(3))]) == pytest.approx((1.5 + 1 + 1) / 6)
    assert identification.pooled([(scores, np.array([0, 1, 1]))]) == pytest.approx((1 + 0.5 + 1 + 0.5) / 4)
    assert np.isnan(identification.pooled([(scores, np.zeros(3, dtype=np.int64))]))


def test_the_weights_of_a_fold_are_those_of_a_ridge_that_never_saw_it() -> None:
    rng = np.random.default_rng(0)
    betas, tokens = rng.standard_normal((24, 40)) + 2, rng.standard_normal((24, 5))
    folds = identification.make_folds(betas, regression.folds(np.arange(24), least=4))
    assert sorted(np.concatenate([fold.held for fold in folds]).tolist()) == list(range(24))
    standard = (betas - betas.mean(0)) / betas.std(0)
    for fold in folds:
        others = standard[fold.rest]
        penalty = np.square(others - others.mean(0)).sum() / len(others)
        expected = Ridge(alpha=penalty).fit(others, tokens[fold.rest]).predict(standard[fold.held])
        got = fold.weights @ tokens[fold.rest] + tokens[fold.rest].mean(0)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_a_silent_voxel_and_one_without_an_estimate_have_no_part() -> None:
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((12, 6))
    parts = regression.folds(np.arange(12), least=4)
    broken = np.concatenate([betas, np.ones((12, 1)), np.full((12, 1), np.nan)], axis=1)
    for whole, other in zip(
        identification.make_folds(betas, parts), identification.make_folds(broken, parts), strict=True
    ):
        np.testing.assert_array_equal(whole.weights, other.weights)


def test_betas_that_never_vary_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    calibrator = Calibrator(stimuli(12, rng))
    for i in range(12):
        calibrator.add(np.ones(5), trial=f"t{i}", stimulus=str(i), run=1)
    status = calibrator.status()
    assert (status.percentile, status.p_value) == (0.5, 1.0)


def test_one_stimulus_a_fold_has_no_figure() -> None:
    rng = np.random.default_rng(0)
    calibrator = Calibrator(stimuli(8, rng), leave_out="run")
    for i in range(12):
        calibrator.add(rng.standard_normal(5), trial=f"t{i}", stimulus=str(i % 3), run=1 + i % 3)
    assert calibrator.status() == CurvePoint(trials=12)
