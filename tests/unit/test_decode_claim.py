"""Bets on a session: claims without cause stay rare however often one looks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from rtdecode.decode.score.claim import CLAIM, announced_factor, rate_limit, support_factor

SESSIONS, TRIALS = 2000, 80
ALLOWED = 0.05


def ever_claimed(factors: np.ndarray) -> int:
    """Sessions (rows) whose product reaches the claim at some time."""
    return int((np.cumsum(np.log(factors), axis=1).max(1) >= np.log(CLAIM)).sum())


def keeps_to_it(claims: int) -> bool:
    return bool(binomtest(claims, SESSIONS, ALLOWED, alternative="greater").pvalue > 0.01)


@pytest.mark.parametrize("n_null", [24, 40, 60, 200])
def test_sessions_without_content_seldom_claim_though_all_their_trials_share_the_nulls(n_null: int) -> None:
    rng = np.random.default_rng(n_null)
    limit = rate_limit(0.04, n_null)
    factors = np.empty((SESSIONS, TRIALS))
    for session in range(SESSIONS):
        nulls, trials = rng.standard_normal(n_null), rng.standard_normal(TRIALS)
        p = (1 + (nulls >= trials[:, None]).sum(1)) / (1 + n_null)
        factors[session] = [support_factor(bool(one <= 0.04), limit) for one in p]
    assert keeps_to_it(ever_claimed(factors))


def test_sessions_with_content_soon_claim() -> None:
    rng = np.random.default_rng(1)
    limit = rate_limit(0.04, 40)
    supported = rng.random((200, 30)) < 0.6
    factors = np.where(supported, support_factor(True, limit), support_factor(False, limit))
    assert ever_claimed(factors) > 195


@pytest.mark.parametrize("n_null", [24, 30, 40, 59, 100, 999])
@pytest.mark.parametrize("level", [0.01, 0.04, 0.1])
def test_the_limit_is_passed_in_one_calibration_of_a_hundred(n_null: int, level: float) -> None:
    """The gate opens with probability q where fewer than `allowed` of the nulls lie above the 1 - q quantile."""
    limit = rate_limit(level, n_null)
    allowed = max(int(np.floor(round(level * (n_null + 1), 9))), 1)
    if allowed == 1 and level * (n_null + 1) < 1:  # it never opens: the limit of one step
        assert limit == pytest.approx(1 - 0.01 ** (1 / (n_null + 1)))
    else:
        assert binom.cdf(allowed - 1, n_null, limit) == pytest.approx(0.01, rel=1e-6)
    assert limit > level


def test_a_fair_bet_has_an_expected_value_of_one() -> None:
    for limit in (0.05, 0.12, 0.5):
        assert limit * support_factor(True, limit) + (1 - limit) * support_factor(False, limit) == pytest.approx(1)
        assert support_factor(False, limit) > 0


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
)
def test_a_bet_on_announcements_is_fair_under_what_is_left(probabilities: list[float], remaining: list[int]) -> None:
    factors = [announced_factor(np.array(probabilities), category, remaining) for category in remaining]
    assert min(factors) > 0
    assert np.mean(factors) == pytest.approx(1)


def guesses_that_do_not_repeat(rng: np.random.Generator) -> np.ndarray:
    """Probabilities (8, 8) of a run's trials: nearly sure, each category once."""
    sure = np.full((8, 8), 0.01)
    sure[np.arange(8), rng.permutation(8)] = 0.93
    return sure


def stubborn(rng: np.random.Generator) -> np.ndarray:
    probabilities = np.full((8, 8), 0.05)
    probabilities[:, rng.integers(8)] = 0.65
    return probabilities


@pytest.mark.parametrize("decoder", [guesses_that_do_not_repeat, stubborn])
def test_announced_sessions_without_content_seldom_claim(decoder: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    factors = np.empty((SESSIONS, 5 * 8))
    for session in range(SESSIONS):
        for run in range(5):
            order, told = rng.permutation(8), decoder(rng)
            for trial in range(8):
                factors[session, 8 * run + trial] = announced_factor(told[trial], order[trial], order[trial:])
    assert keeps_to_it(ever_claimed(factors))


def test_announced_sessions_with_content_claim() -> None:
    rng = np.random.default_rng(3)
    factors = np.empty((100, 16))
    for session in range(100):
        for run in range(2):
            order = rng.permutation(8)
            for trial in range(8):
                told = np.full(8, 0.07)
                told[order[trial] if rng.random() < 0.6 else rng.integers(8)] = 0.51
                factors[session, 8 * run + trial] = announced_factor(told, order[trial], order[trial:])
    assert ever_claimed(factors) > 80
