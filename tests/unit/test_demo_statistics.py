import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata

from rtdecode.demo.statistics import accuracy_p, identification, mid_ranks, wilson_interval


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_interval_is_wilsons(n: int, share: float) -> None:
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_ranks_share_ties(rows: list[list[int]]) -> None:
    values = np.array(rows, float)
    expected = np.stack([rankdata(-row, method="average") for row in values])
    assert np.array_equal(mid_ranks(values), expected)


def test_constant_similarity_is_chance_exactly() -> None:
    found = identification(np.zeros((20, 20)), np.arange(20), np.random.default_rng(0))
    assert (found.top1, found.percentile, found.permutation_p) == (0.0, 0.5, 1.0)


def test_perfect_identification_reaches_the_floor_of_p() -> None:
    found = identification(np.eye(30), np.arange(30), np.random.default_rng(0))
    assert (found.top1, found.percentile, found.permutation_p) == (1.0, 1.0, 1e-4)


def test_p_values_are_uniform_without_signal() -> None:
    rng = np.random.default_rng(1)
    ps = [identification(rng.standard_normal((15, 15)), np.arange(15), rng).permutation_p for _ in range(60)]
    assert 0.3 < np.mean(ps) < 0.7


def test_accuracy_p() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"] * 10
    assert accuracy_p(names, names, rng) == 1e-4
    assert accuracy_p(names, ["a"] * 40, rng) == 1.0
