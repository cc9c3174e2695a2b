"""Figures of a calibration that goes on, against counting by hand and decoders that know the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from calibration import standing
from calibration.advice import Plan, advise, project
from calibration.encoding.inverse import Noise
from calibration.encoding.maps import MapPrior
from calibration.regression import folds
from calibration.targets import components_of_products, make_targets


def held(*parts: tuple[list[list[float]], list[int]]) -> standing.HeldOut:
    return standing.HeldOut(
        scores=tuple(np.array(scores) for scores, _ in parts), shown=tuple(np.array(shown) for _, shown in parts)
    )


def test_ranks_firsts_and_pairs_are_counted_by_hand() -> None:
    found = held(([[3.0, 1.0, 2.0], [0.0, 5.0, 9.0], [1.0, 1.0, 1.0]], [4, 5, 6]), ([[1.0]], [7]))
    np.testing.assert_allclose(found.ranks(), [1.0, 0.5, 0.5, np.nan])
    assert found.firsts() == (1, 3, pytest.approx(1 / 3))  # a tie for the first place is none
    # 0 with 1: 3 + 5 > 1 + 0; 0 with 2: 3 + 1 > 2 + 1; 1 with 2: 5 + 1 < 9 + 1
    np.testing.assert_allclose(found.pairs(), [1.0, 0.5, 0.5, np.nan])


def test_a_picture_shown_twice_in_a_fold_is_one_candidate() -> None:
    found = held(([[3.0, 3.0, 1.0], [2.0, 2.0, 5.0], [0.0, 0.0, 1.0]], [4, 4, 6]))
    np.testing.assert_allclose(found.ranks(), [1.0, 0.0, 1.0])
    assert found.firsts() == (2, 3, 0.5)
    # trials 0 and 2: 3 + 1 > 1 + 0; trials 1 and 2: 2 + 1 < 5 + 0; 0 and 1 show the same
    np.testing.assert_allclose(found.pairs(), [1.0, 0.0, 0.5])


def people(n: int, seed: int, strength: float = 0.07) -> tuple[np.ndarray, np.ndarray]:
    """Responses (n, 200) to components (n, 12)."""
    rng = np.random.default_rng(seed)
    weights = strength * np.random.default_rng(99).standard_normal((12, 200))
    components = rng.standard_normal((n, 12))
    return (components @ weights + rng.standard_normal((n, 200))).astype(np.float32), components


def prior(_: np.ndarray) -> MapPrior:
    return MapPrior(covariance=np.eye(12) / 12)


def test_held_out_figures_are_those_of_trials_never_seen() -> None:
    responses, components = people(400, 0)
    parts = folds(np.arange(80), least=4)
    found = standing.held_out(responses[:80], components[:80], [prior], parts, np.arange(80))
    mean, (low, high) = standing.mean_with_interval(found.ranks(), np.arange(80), np.random.default_rng(0)) or (
        0,
        (0, 0),
    )
    model = standing.fit_encoder(responses[:80], components[:80], [prior], parts=[], shown=np.arange(80)).whole
    scores = model.scores(responses[80:], components[80:])
    new = np.mean((scores < np.diag(scores)[:, None]).sum(1) / 319)
    assert low < mean < high
    assert mean == pytest.approx(new, abs=0.06)
    assert 0.6 < new < 0.99


def test_the_growth_foretells_what_more_trials_bring() -> None:
    told, came = [], []
    for seed in range(6):
        responses, components = people(240, seed, 0.05)
        parts = folds(np.arange(60), least=4)
        few = [
            standing.held_out(responses[:60], components[:60], [prior], parts, np.arange(60), s)
            for s in standing.SHARES
        ]
        outlook = standing.outlook(
            [one.ranks() for one in few], [round(52.5 * s) for s in standing.SHARES], np.random.default_rng(0)
        )
        told.append(outlook.at(210) - outlook.at(52))
        later = standing.held_out(responses, components, [prior], folds(np.arange(240), least=4), np.arange(240))
        came.append(later.ranks().mean() - few[0].ranks().mean())
    assert np.mean(told) == pytest.approx(np.mean(came), abs=0.05)
    assert np.mean(came) > 0.05


def test_a_figure_that_does_not_grow_is_projected_as_it_is() -> None:
    rng = np.random.default_rng(0)
    flat = 0.8 + 0.05 * rng.standard_normal(100)
    outlook = standing.outlook([flat, flat, flat], [80, 40, 20], rng)
    gain, (low, high) = outlook.gain(100, 1000)
    assert (gain, low, high) == (0.0, 0.0, 0.0)
    rising = standing.outlook([flat, flat - 0.1, flat - 0.2], [80, 40, 20], rng)
    assert 0 < rising.gain(100, 200)[0] < rising.gain(100, 1000)[0]
    assert rising.at(80) == pytest.approx(flat.mean())


def test_the_ceiling_is_what_a_decoder_reaches_that_knows_each_response() -> None:
    rng = np.random.default_rng(1)
    truth = 0.25 * rng.standard_normal((60, 80))
    shared = rng.standard_normal((2, 80)).astype(np.float32)
    own = rng.uniform(0.5, 2, 80).astype(np.float32)

    def noise(n: int) -> np.ndarray:
        return rng.standard_normal((n, 2)) @ shared + np.sqrt(own) * rng.standard_normal((n, 80))

    shown = np.tile(np.arange(60), 2)
    responses = (truth[shown] + noise(120)).astype(np.float32)
    found = standing.noise_ceiling(responses, shown, np.arange(80), Noise(shared=shared, own=own), rng)
    assert found is not None
    precision = np.linalg.inv(shared.T @ shared + np.diag(own))
    test = truth + noise(60)
    scores = test @ precision @ truth.T - 0.5 * np.einsum("pv,vw,pw->p", truth, precision, truth)
    knows = np.mean([(scores[i] < scores[i, i]).sum() / 59 for i in range(60)])
    assert found[0] == pytest.approx(knows, abs=0.03)
    assert found[1][0] < found[0] < found[1][1]
    apart = [np.sqrt((truth[i] - truth[j]) @ precision @ (truth[i] - truth[j])) for i in range(60) for j in range(i)]
    assert found[0] == pytest.approx(np.mean(norm.cdf(np.array(apart) / 2)), abs=0.03)


def test_a_ceiling_wants_repeats_and_is_chance_without_signal() -> None:
    rng = np.random.default_rng(0)
    plain = Noise(shared=np.zeros((0, 40), np.float32), own=np.ones(40, np.float32))
    responses = rng.standard_normal((200, 40)).astype(np.float32)
    assert standing.noise_ceiling(responses, np.arange(200), np.arange(40), plain, rng) is None
    found = standing.noise_ceiling(responses, np.arange(200) // 2, np.arange(40), plain, rng)
    assert found is not None
    assert found[1][0] == 0.5


def test_components_of_products_are_those_of_the_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((30, 2, 8)) * np.linspace(2, 0.5, 8)
    groups = (slice(0, 8), slice(8, 16))
    targets = make_targets(tokens, groups, most=6)
    flat = tokens.reshape(30, 16)
    components, share = components_of_products([flat[:, one] @ flat[:, one].T for one in groups], most=6)
    assert components.shape == targets.components.shape
    np.testing.assert_allclose(np.abs((components * targets.components).mean(0)), 1, atol=1e-6)
    assert share.sum() == pytest.approx(1)
    again, none = components_of_products([np.ones((5, 5))])
    assert again.shape == (5, 0)
    assert none.shape == (0,)


def rising(by: float, n: int = 200) -> standing.Outlook:
    flat = np.full(n, 0.8) + 0.02 * np.random.default_rng(0).standard_normal(n)
    return standing.outlook([flat, flat - by, flat - 2 * by], [105, 52, 26], np.random.default_rng(1))


def test_advice_weighs_what_is_left_of_the_plan() -> None:
    plan = Plan(trials=240, per_minute=15.0)
    assert advise(120, 0.001, rising(0.1), plan)[0] == "go on"
    assert advise(120, 0.001, rising(0.004), plan)[0] == "enough"
    assert advise(120, 0.02, rising(0.004), plan)[0] == "go on"  # too little is certain yet
    word, why = advise(120, 0.3, rising(0.0), plan)
    assert word == "no signal"
    assert "look at the announced onsets" in why
    assert advise(20, 0.3, None, plan) == ("", "")
    assert advise(240, 0.001, rising(0.1), Plan(trials=240)) == ("", "")  # nothing tells what more would be
    assert advise(240, 0.001, rising(0.1), plan)[0] == "go on"  # for ten minutes more
    assert "120 more trials" in advise(120, 0.001, rising(0.1), plan)[1]


def test_projections_are_by_the_pace_of_the_trials() -> None:
    found = project(120, 0.8, rising(0.1), Plan(trials=200, per_minute=15.0))
    assert [(one.minutes, one.trials) for one in found] == [
        (5.0, 195), (pytest.approx(80 / 15), 200), (10.0, 270), (30.0, 570),
    ]  # fmt: skip
    values = [one.percentile for one in found]
    assert values == sorted(values)
    assert all(one.interval[0] <= one.percentile <= one.interval[1] + 1e-9 for one in found)
    assert project(120, 0.8, rising(0.1), Plan(trials=200)) == ()
    assert project(12, 0.8, None, Plan(trials=200, per_minute=15.0)) == ()
