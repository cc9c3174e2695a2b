"""Responses without a picture: which are taken, and that no pair tells more than noise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import nulls
from calibration.encoding.encoder import Encoder, Inverted
from calibration.encoding.inverse import Inverse, Noise, invert
from calibration.encoding.maps import Maps
from calibration.nulls import FEWEST, SUPPORT_LEVEL, Nulls, brought_over, find_nulls, without_both

V = 6


def held(seed: int, voxels: np.ndarray) -> Inverted:
    rng = np.random.default_rng(seed)
    s = len(voxels)
    inverse = Inverse(
        projection=np.zeros((2, s), np.float32),
        information=np.eye(2),
        mean=rng.standard_normal(s).astype(np.float32),
    )
    noise = Noise(shared=np.zeros((0, s), np.float32), own=np.ones(s, np.float32))
    return Inverted(voxels=voxels, inverse=inverse, noise=noise)


def encoder_of(n: int, folds: int = 4) -> Encoder:
    models = tuple(held(i, np.random.default_rng(i).permutation(V)[:4]) for i in range(folds))
    return Encoder(
        whole=held(99, np.arange(V)),
        held=models,
        parts=tuple(np.array_split(np.arange(n), folds)),
        weights={},
    )


def find(
    shown: np.ndarray, category: np.ndarray, null_trials: int = 0, alone: int = 0
) -> tuple[Nulls, Encoder, np.ndarray]:
    rng = np.random.default_rng(0)
    responses = rng.standard_normal((len(shown), V)).astype(np.float32)
    encoder = encoder_of(len(shown))
    content_free = rng.standard_normal((null_trials, V)).astype(np.float32)
    places = np.arange(null_trials) * len(shown) // max(null_trials, 1)
    own_run = np.arange(null_trials) >= null_trials - alone
    found = find_nulls(encoder, responses, components_of(shown), content_free, places, own_run, shown, category, rng)
    return found, encoder, responses


def components_of(shown: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((shown.max() + 1, 2))[shown]


UNIQUE = np.arange(160)
REPEATED = np.tile(np.arange(40), 4)
IN_FOLD = np.concatenate([np.tile(np.arange(10) + 10 * fold, 4) for fold in range(4)])
CATEGORY = np.tile(np.arange(8), 20)
NO_NULLS = (np.zeros(0, np.int64), np.zeros(0, np.bool_))


@pytest.mark.parametrize(
    ("shown", "null_trials", "kind"),
    [
        (UNIQUE, FEWEST, "null trials"),
        (IN_FOLD, FEWEST, "null trials"),
        (IN_FOLD, FEWEST - 1, "repeats"),
        (IN_FOLD, 0, "repeats"),
        (REPEATED, 0, "differences"),  # every repeat is in another fold: no model has seen neither
        (UNIQUE, 0, "differences"),
    ],
)
def test_the_best_nulls_that_are_there_are_taken(shown: np.ndarray, null_trials: int, kind: str) -> None:
    found, _, _ = find(shown, CATEGORY, null_trials)
    assert found.kind == kind
    if kind == "null trials":
        assert [fold for fold, _ in found.groups] == [0, 1, 2, 3]  # each is judged without its neighbours
        assert sum(len(rows) for _, rows in found.groups) == found.independent == FEWEST
    else:
        assert [fold for fold, _ in found.groups] == [0, 1, 2, 3]
        assert 2 * found.independent == sum(len(rows) for _, rows in found.groups)  # both signs


def test_null_trials_of_their_own_run_are_judged_by_the_final_model() -> None:
    found, _, _ = find(UNIQUE, CATEGORY, null_trials=40, alone=25)
    sizes = {fold: len(rows) for fold, rows in found.groups}
    assert sizes == {None: 25, 0: 10, 1: 5}
    every, _, _ = find(UNIQUE, CATEGORY, null_trials=40, alone=40)
    assert [fold for fold, _ in every.groups] == [None]


def test_the_fewest_nulls_can_support_a_trial() -> None:
    assert 1 / (FEWEST + 1) <= SUPPORT_LEVEL < 1 / FEWEST


def test_differences_are_of_one_fold_and_category_and_never_of_neighbours() -> None:
    found, encoder, responses = find(UNIQUE, CATEGORY // 2)
    used: list[int] = []
    for fold, rows in found.groups:
        assert fold is not None
        part, model = encoder.parts[fold], encoder.held[fold]
        average = np.zeros(V, np.float32)
        average[model.voxels] = model.inverse.mean
        pairs = [(i, j) for i in part for j in part if i < j]
        halves = np.stack([(responses[i] - responses[j]) / np.sqrt(2) for i, j in pairs])
        assert len(rows) % 2 == 0
        for plus, minus in zip(rows[::2], rows[1::2], strict=True):
            np.testing.assert_allclose(plus - average, average - minus, atol=1e-6)
            away = np.abs(halves - (plus - minus) / 2).max(1)
            assert away.min() < 1e-5
            first, second = pairs[int(away.argmin())]
            assert second - first > 2
            assert CATEGORY[first] // 2 == CATEGORY[second] // 2
            used += [first, second]
    assert len(used) == len(set(used)) > 100


def test_repeats_in_two_runs_are_held_out_together() -> None:
    parts = np.array_split(np.arange(32), 4)
    each_run = np.tile(np.arange(8), 4)
    rings = without_both(parts, each_run)
    assert [sorted({int(trial) // 8 for trial in ring}) for ring in rings] == [[0, 1], [1, 2], [2, 3], [0, 3]]
    assert without_both(parts, np.arange(32)) == []  # nothing is repeated
    assert without_both(parts[:2], each_run[:16]) == []  # nobody would be left to learn from
    assert without_both(np.array_split(np.arange(160), 4), IN_FOLD) == []  # folds have their repeats


def test_half_a_difference_has_the_noise_of_one_response() -> None:
    rng = np.random.default_rng(3)
    shown = IN_FOLD
    signal = 5 * rng.standard_normal((40, V))
    responses = (signal[shown] + rng.standard_normal((160, V))).astype(np.float32)
    encoder = encoder_of(160)
    found = find_nulls(encoder, responses, components_of(shown), responses[:0], *NO_NULLS, shown, CATEGORY, rng)
    rows = np.concatenate([rows[::2] - rows[1::2] for _, rows in found.groups]) / 2
    assert np.square(rows).mean() == pytest.approx(1, abs=0.15)


def test_a_lapse_leaves_no_picture_in_the_difference_of_two_looks() -> None:
    rng = np.random.default_rng(8)
    n_voxels, shown, components = 200, IN_FOLD, components_of(IN_FOLD)
    maps = Maps(
        weights=0.4 * rng.standard_normal((2, n_voxels)).astype(np.float32),
        constant=np.zeros(n_voxels, np.float32),
        residuals=np.zeros((0, n_voxels), np.float32),
        unknown=np.zeros(n_voxels, np.float32),
    )
    shared = rng.standard_normal((3, n_voxels)).astype(np.float32)
    model = Inverted(
        voxels=np.arange(n_voxels),
        inverse=invert(maps, Noise(shared=shared, own=np.ones(n_voxels, np.float32))),
        noise=Noise(shared=shared, own=np.ones(n_voxels, np.float32)),
    )
    encoder = replace(encoder_of(len(shown)), whole=model, held=(model,) * 4)
    noise = rng.standard_normal((160, n_voxels)) + rng.standard_normal((160, 3)) @ shared
    attentive = (noise + components @ maps.weights).astype(np.float32)
    lapses = attentive.copy()
    lapses[::9] = noise[::9]

    def contents(responses: np.ndarray) -> np.ndarray:
        found = find_nulls(encoder, responses, components, responses[:0], *NO_NULLS, shown, CATEGORY, rng)
        rows = np.concatenate([rows for _, rows in found.groups])
        return content_of(rows)

    def content_of(rows: np.ndarray) -> np.ndarray:
        pictures = components_of(np.arange(40))
        return model.contents(rows, pictures, np.zeros(2, np.int64), 0, near=0, noise_range=(1, 1))[0]

    expected = content_of(model.draw(20_000, n_voxels, rng))
    unlikely = np.quantile(expected, 0.95)
    assert np.mean(contents(attentive) > unlikely) == pytest.approx(0.05, abs=0.03)
    assert np.mean(contents(lapses) > unlikely) < 0.18  # .23 with the pictures in them
    weights, pattern = model.noise_along(components[0], n_voxels)
    assert weights @ pattern == pytest.approx(1, abs=1e-4)
    covariance = shared.T @ shared + np.eye(n_voxels)
    np.testing.assert_allclose(covariance @ weights, pattern, rtol=1e-3, atol=1e-4)


@given(st.lists(st.integers(0, 60), unique=True, max_size=30))
def test_pairs_are_far_apart_and_each_trial_is_in_one_at_most(trials: list[int]) -> None:
    pairs = nulls._pairs(np.array(trials, dtype=np.int64))
    used = [trial for pair in pairs for trial in pair]
    assert len(used) == len(set(used))
    assert set(used) <= set(trials)
    assert all(second - first > 2 for first, second in pairs)
    left = sorted(set(trials) - set(used))
    assert all(b - a <= 2 for a, b in pairwise(left)) or len(left) < 2


def test_neighbours_alone_make_no_null() -> None:
    found, _, _ = find(UNIQUE, np.repeat(np.arange(80), 2))
    assert found.kind == "differences"
    assert found.groups == ()


def test_trials_that_are_in_two_differences_make_no_more_independent_ones() -> None:
    each_run = np.tile(np.arange(8), 4)
    rng = np.random.default_rng(0)
    responses = rng.standard_normal((32, V)).astype(np.float32)
    parts = tuple(np.array_split(np.arange(32), 4))
    rings = tuple(without_both(parts, each_run))
    models = tuple(held(i, np.arange(V)) for i in range(8))
    encoder = Encoder(whole=models[0], held=models, parts=(*parts, *rings), weights={})
    found = find_nulls(encoder, responses, components_of(each_run), responses[:0], *NO_NULLS, each_run, each_run, rng)
    assert (found.kind, sum(len(rows) for _, rows in found.groups)) == ("repeats", 2 * 4 * 8)
    assert found.independent == 16  # 32 trials


def test_values_are_brought_to_the_scale_of_another_model() -> None:
    rng = np.random.default_rng(5)
    here, there = rng.normal(2, 3, 4000), rng.normal(-1, 0.5, 4000)
    moved = brought_over(np.array([2.0, 5.0, -4.0]), here, there)
    np.testing.assert_allclose(moved, [-1, -0.5, -2], atol=0.06)  # the mean, and a deviation to either side
    np.testing.assert_array_equal(brought_over(moved, np.ones(9), there), moved)  # draws that tell no scale


def test_drawn_responses_have_the_noise_of_the_model() -> None:
    rng = np.random.default_rng(6)
    shared = rng.standard_normal((2, 3)).astype(np.float32)
    noise = Noise(shared=shared, own=np.array([0.5, 1.0, 2.0], np.float32))
    inverse = Inverse(
        projection=np.zeros((2, 4), np.float32), information=np.eye(2), mean=np.arange(4, dtype=np.float32)
    )
    model = Inverted(voxels=np.array([4, 0, 2, 5]), inverse=inverse, noise=noise)
    drawn = model.draw(40_000, V, rng)
    assert not drawn[:, [1, 3]].any()
    np.testing.assert_allclose(drawn.mean(0)[[4, 0, 2, 5]], np.arange(4), atol=0.05)
    covariance = np.cov(drawn[:, [4, 0, 2]].T)
    np.testing.assert_allclose(covariance, shared.T @ shared + np.diag(noise.own), rtol=0.05, atol=0.1)
