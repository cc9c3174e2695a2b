"""The shared statistics against scipy and scikit-learn, and against the formulas that stood in their places before."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from rtdecode.demo.summary import score_identification
from rtdecode.statistics import (
    RunningMoments,
    bootstrap_interval,
    cosines,
    mid_ranks,
    p_value,
    percentile_ranks,
    permutation_p,
    row_cosines,
    single,
    wilson_interval,
)

few_levels = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=5, max_size=5), min_size=1)


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_an_interval_is_where_the_score_test_does_not_reject(n: int, share: float) -> None:
    hits = round(share * n)
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    for bound, inside in ((low, low > 0), (high, high < 1)):
        if inside:
            z = (hits / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert stats.chi2.sf(z * z, 1) == pytest.approx(0.05, rel=1e-6)


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_an_interval_is_what_it_was_up_to_the_rounding_of_its_quantile(n: int, share: float) -> None:
    hits, z = round(share * n), 1.959964
    centre = (hits / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))
    assert wilson_interval(hits, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-8)


def test_nothing_is_known_without_trials() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="k"):
        wilson_interval(3, 2)


@pytest.mark.parametrize("n", [2, 7, 64, 513])
def test_a_bootstrap_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3), vectorized=True
    )
    interval = bootstrap_interval(values, np.random.default_rng(3), resamples=500)
    assert interval == pytest.approx(found.confidence_interval, abs=1e-12)
    assert interval == tuple(np.quantile(found.bootstrap_distribution, [0.025, 0.975]))


@pytest.mark.parametrize("values", [np.arange(5.0), np.arange(300) % 2 == 1, np.float32([0.1, 0.7, 0.3])])
def test_a_bootstrap_is_what_it_was(values: np.ndarray) -> None:
    each = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    one_by_one = [each[rng.integers(len(each), size=len(each))].mean() for _ in range(400)]
    rng = np.random.default_rng(0)
    at_once = each[rng.integers(0, len(each), (400, len(each)))].mean(1)
    found = bootstrap_interval(values, np.random.default_rng(0), resamples=400)
    assert found == tuple(np.quantile(one_by_one, (0.025, 0.975))) == tuple(np.quantile(at_once, [0.025, 0.975]))


def test_a_bootstrap_of_one_value_is_that_value_and_of_none_an_error() -> None:
    assert bootstrap_interval(np.array([2.5]), np.random.default_rng(0), resamples=9) == (2.5, 2.5)
    with pytest.raises(ValueError, match="expected at least one value"):
        bootstrap_interval(np.zeros(0), np.random.default_rng(0), resamples=9)


@given(few_levels)
def test_ranks_share_ties_and_undefined_scores_tie_with_all(rows: list[list[float]]) -> None:
    found = mid_ranks(np.array(rows))
    for row, ranks in zip(rows, found, strict=True):
        for own, rank in zip(row, ranks, strict=True):
            better, worse = sum(other > own for other in row), sum(other < own for other in row)
            assert rank == 1 + better + 0.5 * (len(row) - 1 - better - worse)
    np.testing.assert_array_equal(percentile_ranks(np.array(rows)), 1 - (found - 1) / 4)


@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-3, 3, width=16)))
def test_ranks_are_scipys(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(mid_ranks(scores), stats.rankdata(-scores, axis=1))
    np.testing.assert_array_equal(mid_ranks(scores[0]), mid_ranks(scores)[0])
    n = scores.shape[1]
    if n > 1:
        ascending = (stats.rankdata(scores, axis=1) - 1) / (n - 1)
        np.testing.assert_allclose(percentile_ranks(scores), ascending, rtol=0, atol=1e-15)


def test_scores_that_are_no_numbers_are_no_signal() -> None:
    ranks = percentile_ranks(np.full((12, 4), np.nan))
    np.testing.assert_array_equal(ranks, 0.5)
    assert permutation_p(ranks, np.arange(12) % 4, np.random.default_rng(0), resamples=99) == 1.0
    np.testing.assert_array_equal(mid_ranks(np.array([np.nan, 1.0, 2.0, 3.0])), [2.5, 3.5, 2.5, 1.5])


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(-1, 10))
def test_a_p_value_counts_the_observed_among_chances_cases(null: list[int], observed: int) -> None:
    expected = (1 + sum(case >= observed for case in null)) / (1 + len(null))
    assert p_value(np.array(null), observed) == expected
    assert p_value(np.sort(np.float32(null)), observed + 1e-13) == expected


@pytest.mark.parametrize("n", [8, 16, 80])
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_test_is_what_it_was_and_leaves_the_generator_where_it_did(n: int, seed: int) -> None:
    values = percentile_ranks(np.random.default_rng(seed).standard_normal((n, n)) + np.eye(n) * seed / 3)
    truth, trials = np.arange(n), np.arange(n)
    new, loop, tiled = (np.random.default_rng(seed) for _ in range(3))
    found = permutation_p(values, truth, new, resamples=1999)
    observed = values[trials, truth].mean()
    null = np.array([values[trials, loop.permutation(truth)].mean() for _ in range(1999)])
    assert found == (1 + np.sum(null >= observed - 1e-12)) / 2000
    shuffled = values[trials, tiled.permuted(np.tile(truth, (1999, 1)), axis=1)].mean(axis=1)
    assert found == (1 + np.sum(shuffled >= observed - 1e-12)) / 2000
    assert new.random() == loop.random() == tiled.random()


@pytest.mark.parametrize("seed", range(3))
def test_the_p_of_an_accuracy_is_what_it_was(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, answers = rng.integers(5, size=40), rng.integers(5, size=40)
    answers[:10] = truth[:10]
    shuffled = np.random.default_rng(seed).permuted(np.tile(truth, (999, 1)), axis=1)
    expected = (1 + ((shuffled == answers).sum(axis=1) >= (truth == answers).sum()).sum()) / 1000
    named = answers[:, None] == np.arange(5)
    assert permutation_p(named, truth, np.random.default_rng(seed), resamples=999) == expected


def test_few_trials_are_shuffled_in_every_order() -> None:
    values, truth = np.random.default_rng(0).random((5, 5)), np.arange(5)
    sums = [values[truth, list(order)].sum() for order in itertools.permutations(range(5))]
    expected = np.mean(np.array(sums) >= np.trace(values) - 1e-12)
    assert permutation_p(values, truth, np.random.default_rng(0), resamples=999) == pytest.approx(expected)
    assert permutation_p(values[:1], truth[:1], np.random.default_rng(0), resamples=999) == 1.0


def test_p_values_are_uniform_without_signal() -> None:
    rng = np.random.default_rng(3)
    found = [
        permutation_p(percentile_ranks(rng.standard_normal((24, 8))), np.arange(24) % 8, rng, resamples=199)
        for _ in range(200)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_identification_goes_from_chance_to_the_least_p_there_is() -> None:
    nothing = score_identification(np.zeros((20, 20)), np.arange(20), np.random.default_rng(0))
    assert (nothing["top1"], nothing["percentile"], nothing["permutation_p"]) == (0.0, 0.5, 1.0)
    perfect = score_identification(np.eye(30), np.arange(30), np.random.default_rng(0))
    assert (perfect["top1"], perfect["percentile"], perfect["permutation_p"]) == (1.0, 1.0, 1e-4)
    assert perfect["top1_interval"] == list(stats.binomtest(30, 30).proportion_ci(method="wilson"))


def test_cosines_are_scipys_and_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((4, 30)), rng.standard_normal((7, 30)).astype(np.float32)
    np.testing.assert_allclose(cosines(queries, candidates), 1 - cdist(queries, candidates, "cosine"), atol=1e-14)
    np.testing.assert_allclose(cosines(queries, candidates), cosine_similarity(queries, candidates), atol=1e-14)


def test_cosines_are_what_they_were() -> None:
    rng = np.random.default_rng(1)
    queries, candidates = rng.standard_normal((40, 300)), rng.standard_normal((50, 300))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, candidates)]
    np.testing.assert_array_equal(cosines(queries, candidates), unit[0] @ unit[1].T)
    np.testing.assert_array_equal(cosines(queries[:1], candidates)[0], unit[1] @ unit[0][0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_cosines_of_rows_are_what_they_were(dtype: type) -> None:
    rng = np.random.default_rng(2)
    rows, query = rng.standard_normal((600, 333)).astype(dtype), rng.standard_normal(333).astype(np.float32)
    unit, single = query / np.linalg.norm(query), rows.astype(np.float32)
    one_by_one = np.array([row @ unit / np.linalg.norm(row) for row in single])
    np.testing.assert_array_equal(row_cosines(query, rows), one_by_one)
    norms = np.linalg.norm(single, axis=1)
    in_blocks = np.concatenate([single[i : i + 256] @ unit for i in range(0, 600, 256)]) / norms
    np.testing.assert_array_equal(row_cosines(query, rows, norms=norms, at_once=256), in_blocks)
    np.testing.assert_allclose(one_by_one, 1 - cdist(query[None], single, "cosine")[0], atol=1e-6)


def test_every_half_is_made_the_single_that_numpy_makes_of_it() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for halves in (every, finite, finite[::-3].reshape(1, -1), every[:0]):
        found = single(halves)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, halves.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(single(finite)), np.signbit(finite))
    np.testing.assert_array_equal(single(np.array([1.5, np.pi])), np.array([1.5, np.pi], np.float32))


def test_what_has_no_direction_has_no_cosine() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(cosines(rows[1:], rows), [[np.nan, 1.0]])
    np.testing.assert_array_equal(row_cosines(rows[1], rows), [np.nan, 1.0])


@given(arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.floats(-1e3, 1e3, width=32)))
def test_running_moments_are_those_of_all(values: np.ndarray) -> None:
    moments = RunningMoments()
    mean, square = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for count, row in enumerate(values, start=1):
        moments.add(row)
        change = row - mean
        mean += change / count
        square += change * (row - mean)
    np.testing.assert_array_equal(moments.mean, mean)
    np.testing.assert_array_equal(moments.deviation, np.sqrt(square / max(1, len(values) - 1)))
    np.testing.assert_allclose(moments.mean, values.mean(0), atol=1e-9)
    wanted = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    np.testing.assert_allclose(moments.deviation, wanted, atol=1e-6)


def test_moments_change_nothing_that_they_are_given() -> None:
    moments, first = RunningMoments(), np.ones(3)
    moments.add(first)
    moments.add(np.full(3, 5.0))
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(moments.mean, 3)
    with pytest.raises(ValueError, match=r"expected an array of shape \(3,\), got \(2,\)"):
        moments.add(np.ones(2))
