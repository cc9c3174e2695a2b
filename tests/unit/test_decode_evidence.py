"""When a beta may be believed: p-values and sets whose rates hold where trials can be exchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from scipy.stats import kstest

from rtdecode.decode.score.alarm import WINDOW, ContentAlarm
from rtdecode.decode.score.content import content
from rtdecode.decode.score.encoding import EncodingModel, encoding_from, mean_likelihood
from rtdecode.decode.score.evidence import (
    CEILING,
    COVERAGE,
    OUTLIER,
    SIGNAL_LEVEL,
    Evidence,
    evidence_from,
    margin,
    tempered,
)
from rtdecode.errors import BundleError, EngineError
from rtdecode.statistics import p_value

RNG = np.random.default_rng(0)


@given(
    st.lists(st.integers(-500, 500).map(lambda i: i / 10), min_size=2, max_size=10, unique=True),
    st.floats(0, 1),
)
def test_tempered_probabilities_keep_the_order_and_have_the_wanted_top(levels: list[float], share: float) -> None:
    scores = np.array(levels)
    chance = 1 / len(scores)
    wanted = chance + share * (CEILING - chance)
    probabilities = tempered(scores, wanted)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.argmax() == scores.argmax()
    assert probabilities.max() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("scores", [np.zeros(8), np.full(8, np.nan)])
def test_scores_that_say_nothing_give_chance(scores: np.ndarray) -> None:
    np.testing.assert_allclose(tempered(scores, 0.9), 1 / 8)
    assert margin(scores) == 0


def evidence(**changes: np.ndarray) -> Evidence:
    none = np.zeros(0, np.float32)
    made = Evidence(
        coefficients=np.array([-1.0, 0.5], dtype=np.float32),
        signal=np.array([1], dtype=np.uint8),
        content=np.zeros(0, np.float32),
        content_null=np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32),
        category_null=none,
        group_null=np.zeros((0, 4), np.float32),
        rest=none,
        distances=np.linspace(0.5, 1.5, 199, dtype=np.float32),
        surprise=none,
        surprise_category=np.zeros(0, np.int64),
        level=np.array([0.04]),
        independent_nulls=np.array([4]),
    )
    return replace(made, **changes)


def test_evidence_is_logistic_in_the_margin_between_chance_and_ceiling() -> None:
    assert evidence().probability(4.0, 1 / 8) == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert evidence().probability(0.0, 0.5) == 0.5
    assert evidence().probability(1e9, 1 / 8) == CEILING
    assert evidence(signal=np.zeros(1, np.uint8)).probability(1e9, 1 / 8) == 1 / 8


@pytest.mark.parametrize(("content", "expected"), [(-1.0, 1.0), (2.0, 3 / 5), (2.5, 2 / 5), (9.0, 1 / 5)])
def test_p_content_counts_nulls_at_least_as_large(content: float, expected: float) -> None:
    assert evidence().p_content(content) == pytest.approx(expected)


def test_token_groups_have_nulls_of_their_own() -> None:
    model = evidence(group_null=np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0]], np.float32))
    assert model.p_groups([2.5, 2.5]) == pytest.approx([2 / 5, 1.0])
    assert evidence().p_groups([]) == []


def test_what_is_not_below_the_level_is_unknown() -> None:
    groups = {"form": 0.041, "layout": 0.04}
    assert evidence().unknown(0.04, 0.1, groups) == ("form",)
    assert evidence().unknown(0.041, 0.79, groups) == ("category", "form")
    assert evidence().unknown(1.0, 0.8, {}) == ()  # nulls are few, and held-out trials say that it is right


def test_tensors_go_round() -> None:
    again = evidence_from(evidence().tensors())
    assert again.probability(2.0, 1 / 8) == evidence().probability(2.0, 1 / 8)
    with pytest.raises(BundleError, match=r"evidence: missing coefficients.*calibrate again"):
        evidence_from({})
    with pytest.raises(BundleError, match=r"encoding: missing voxels.*calibrate again"):
        encoding_from({})


@pytest.mark.parametrize("name", ["content", "category", "motion", "signal"])
def test_p_values_are_uniform_where_nulls_and_trials_can_be_exchanged(name: str) -> None:
    rng = np.random.default_rng(1)
    n, found = 39, []
    for _ in range(3000):
        values = rng.gamma(2, size=n + 1).astype(np.float32)
        field = {"content": "content_null", "category": "category_null", "motion": "distances", "signal": "rest"}[name]
        p = getattr(evidence(**{field: values[1:]}), f"p_{name}")(float(values[0]))
        found.append(p - rng.random() / (n + 1))  # randomised between the steps of so few nulls
    assert kstest(found, "uniform").pvalue > 0.01
    steps = np.round(np.array(found) * (n + 1) + 0.5)
    assert steps.min() >= 1


def test_false_support_keeps_to_its_level() -> None:
    rng = np.random.default_rng(2)
    opened, runs = 0, 4000
    for _ in range(runs):
        values = rng.standard_normal(60).astype(np.float32)
        model = evidence(content_null=values[1:])
        opened += not model.refusal(model.p_content(float(values[0])), 1.0, None)
    level = np.floor(0.04 * 60) / 60
    assert opened / runs == pytest.approx(level, abs=4 * np.sqrt(level / runs))


def test_the_level_itself_is_reached() -> None:
    nulls = np.arange(49, dtype=np.float32)
    model = evidence(content_null=nulls)
    assert model.p_content(48.0) == pytest.approx(0.04)
    assert not model.refusal(model.p_content(48.0), 1.0, None)


def test_support_wants_signal_content_and_an_ordinary_response() -> None:
    assert not evidence().refusal(0.04, 0.5, None)
    assert not evidence().refusal(0.04, 0.5, SIGNAL_LEVEL)
    assert evidence().refusal(0.04, 0.5, 0.06)  # as rest looks
    assert evidence().refusal(0.041, 0.5, None)
    assert evidence().refusal(0.001, OUTLIER, None)
    assert evidence(signal=np.zeros(1, np.uint8)).refusal(1e-6, 1.0, 0.001)
    assert evidence().refusal(np.nan, 0.5, None)
    none = evidence(content_null=np.zeros(0, np.float32))
    assert none.refusal(none.p_content(1e9), 1.0, None)


def test_where_calibration_was_short_an_outlier_lies_further_than_all_of_it() -> None:
    few = evidence(distances=np.linspace(0.5, 1.5, 40, dtype=np.float32))
    assert few.is_outlier(few.p_motion(1.6))
    assert not few.is_outlier(few.p_motion(1.4))


@pytest.mark.parametrize("of_category", [12, 30, 41])
def test_sets_hold_the_true_category_as_often_as_they_promise_in_each_category(of_category: int) -> None:
    rng = np.random.default_rng(3)
    hits = np.zeros(4)
    sizes = []
    runs = 250
    sharpness = np.array([0.2, 1.0, 2.0, 4.0])  # categories differ in how well they are told
    for _ in range(runs):
        category = np.repeat(np.arange(4), of_category + 4)
        scores = sharpness[category, None] * np.eye(4)[category] + rng.standard_normal((len(category), 4))
        logs = log_softmax(scores, axis=1)
        surprise = -logs[np.arange(len(category)), category].astype(np.float32)
        new = np.concatenate([np.flatnonzero(category == c)[:4] for c in range(4)])
        old = np.setdiff1d(np.arange(len(category)), new)
        model = evidence(surprise=surprise[old], surprise_category=category[old])
        for trial in new:
            kept = model.plausible(np.exp(logs[trial]))
            hits[category[trial]] += kept[category[trial]]
            sizes.append(kept.sum())
    covered = hits / (4 * runs)
    np.testing.assert_allclose(covered, COVERAGE, atol=0.035)
    assert np.mean(sizes) < 3.2


@given(n=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_set_lies_between_the_conformal_ones_of_its_level_and_of_the_next_rank(n: int, seed: int) -> None:
    surprise = np.random.default_rng(seed).exponential(size=n + 50).astype(np.float32)
    model = evidence(surprise=surprise[:n], surprise_category=np.zeros(n, np.int64))
    for one in surprise[n:].astype(np.float64):
        conformal = p_value(surprise[:n], one)
        kept = bool(model.plausible(np.exp(-np.array([one])))[0])
        assert not kept or conformal > 1 - COVERAGE - 1e-9
        assert kept or conformal < 1 - COVERAGE + 1 / (n + 1) + 1e-9


def test_a_category_without_calibration_trials_is_always_plausible() -> None:
    model = evidence(surprise=np.zeros(40, np.float32), surprise_category=np.zeros(40, np.int64))
    assert model.plausible(np.array([0.0, 0.0, 1.0])).tolist() == [False, True, True]


def encoding(v: int = 9, s: int = 6, k: int = 3, c: int = 3, p: int = 5) -> EncodingModel:
    rng = np.random.default_rng(4)

    def single(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    root = rng.standard_normal((k, k))
    return EncodingModel(
        voxels=rng.permutation(v)[:s].astype(np.int64),
        centre=single(s),
        scale=rng.uniform(0.5, 2, s).astype(np.float32),
        mean=single(s),
        projection=single(k, s),
        information=(root @ root.T).astype(np.float32),
        basis=(np.linalg.qr(rng.standard_normal((7, k)))[0].T * [[1.0], [2.0], [3.0]]).astype(np.float32),
        token_mean=single(7),
        pictures=single(p, k),
        picture_category=np.array([0, 0, 1, 1, 1]),
        own_noise=rng.uniform(0.5, 2, 4).astype(np.float32),
        near=np.zeros(1, np.float32),
        noise_range=np.array([0.1, 1e30], np.float32),
        whitener=0.1 * single(2, 4),
        signal_weights=single(4),
        category_weights=single(c, s),
        category_intercept=single(c),
        encoder_weight=np.array([0.7], np.float32),
    )


def test_a_reading_is_what_its_parts_are_declared_to_be() -> None:
    model, beta = encoding(), RNG.standard_normal(9).astype(np.float32)
    reading = model.read(beta)
    z = (beta[model.voxels].astype(np.float64) - model.centre) / model.scale
    np.testing.assert_allclose(reading.components, model.projection @ (z - model.mean), rtol=1e-4, atol=1e-5)
    inverse = np.diag(1 / model.own_noise.astype(np.float64)) - model.whitener.T.astype(np.float64) @ model.whitener
    assert reading.distance == pytest.approx(z[:4] @ inverse @ z[:4] / 4, rel=1e-4)
    assert reading.signal == pytest.approx(float(z[:4] @ model.signal_weights), rel=1e-4)
    assert replace(model, signal_weights=np.zeros(0, np.float32)).read(beta).signal is None
    components = RNG.standard_normal((6, 3))
    expected = [c @ reading.components - 0.5 * c @ model.information @ c for c in components]
    np.testing.assert_allclose(model.pictures_of(reading, components), expected, rtol=1e-5)
    scores = model.pictures_of(reading, model.pictures.astype(np.float64))
    mean = [np.log(np.mean(np.exp(scores[rows]))) for rows in ([0, 1], [2, 3, 4], [0, 1, 2, 3, 4])]
    linear = model.category_weights @ z + model.category_intercept
    np.testing.assert_allclose(model.categories_of(reading), 0.7 * np.array(mean) + linear, rtol=1e-4, atol=1e-4)
    weak = replace(reading, components=reading.components / np.sqrt(reading.distance))
    by_noise = model.pictures_of(weak, model.pictures.astype(np.float64))
    assert model.content_of(reading) == pytest.approx(logsumexp(by_noise) - np.log(5))
    wide = replace(model, near=np.ones(1, np.float32))
    expected = content(weak.components[None], model.pictures.astype(float), model.information.astype(float), near=1.0)
    assert wide.content_of(reading) == pytest.approx(float(expected[0]))
    quiet = replace(reading, distance=0.0)
    assert model.content_of(quiet) == model.content_of(replace(reading, distance=float(model.noise_range[0])))
    blind = replace(model, noise_range=np.ones(2, np.float32))
    assert blind.content_of(reading) == pytest.approx(logsumexp(scores) - np.log(5))
    tokens = (components @ model.basis + model.token_mean).reshape(6, 7, 1)
    np.testing.assert_allclose(model.describe(tokens), components, atol=1e-4)


def test_voxels_without_an_estimate_count_as_their_mean_and_too_many_are_refused() -> None:
    model, beta = encoding(), RNG.standard_normal(9).astype(np.float32)
    filled = beta.copy()
    filled[model.voxels[:3]] = model.centre[:3]
    beta[model.voxels[:2]], beta[model.voxels[2]] = np.nan, np.inf
    some, full = model.read(beta), model.read(filled)
    np.testing.assert_allclose(some.components, full.components, atol=1e-5)
    assert some.distance == pytest.approx(full.distance, abs=1e-5)
    beta[model.voxels[3]] = np.nan
    with pytest.raises(EngineError, match="at least half of the decoder's 6 voxels, got 2"):
        model.read(beta)


def test_a_category_without_a_picture_is_as_likely_as_all() -> None:
    scores = RNG.standard_normal((4, 5))
    found = mean_likelihood(scores, np.array([0, 0, 2, 2, 2]), 3)
    np.testing.assert_allclose(found[:, 1], np.log(np.exp(scores).mean(1)))
    np.testing.assert_allclose(found[:, 2], np.log(np.exp(scores[:, 2:]).mean(1)))


def test_the_alarm_rings_where_content_is_gone_and_seldom_else() -> None:
    rng = np.random.default_rng(8)
    nulls, usual = rng.normal(0, 1, 60), rng.normal(1.5, 1, 240)
    model = evidence(content_null=np.sort(nulls).astype(np.float32), content=usual.astype(np.float32))

    def first_ring(contents: np.ndarray) -> float:
        alarm = ContentAlarm(model)
        for number, one in enumerate(contents, start=1):
            alarm.add(model.p_content(float(one)))
            if alarm.rings():
                return number
        return np.inf

    rung = np.isfinite([first_ring(rng.normal(1.5, 1, 80)) for _ in range(400)])
    assert rung.mean() < 0.01
    assert max(first_ring(rng.normal(0, 1, 80)) for _ in range(50)) <= 60
    assert np.isinf(first_ring(rng.normal(0, 1, WINDOW - 1)))  # too few to say
    silent = ContentAlarm(evidence(content=np.zeros(0, np.float32)))
    silent.add(1.0)
    assert silent.mean_rank is None
