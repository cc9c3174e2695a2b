from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode.decode.families.tiny.sentence import sentence
from rtdecode.decode.score.evidence import CEILING, Evidence, evidence_from, margin, tempered
from rtdecode.decode.score.retrieval import scorer_from
from rtdecode.errors import BundleError


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


def evidence(signal: int = 1) -> Evidence:
    return Evidence(
        coefficients=np.array([-1.0, 0.5], dtype=np.float32),
        null_margins=np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32),
        signal=np.array([signal], dtype=np.uint8),
    )


def test_evidence_is_logistic_in_the_margin_between_chance_and_ceiling() -> None:
    assert evidence().probability(4.0, 1 / 8) == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert evidence().probability(0.0, 0.5) == 0.5
    assert evidence().probability(1e9, 1 / 8) == CEILING
    assert evidence(signal=0).probability(1e9, 1 / 8) == 1 / 8


@pytest.mark.parametrize(("lead", "expected"), [(-1.0, 1.0), (2.0, 3 / 5), (2.5, 2 / 5), (9.0, 1 / 5)])
def test_p_noise_counts_margins_at_least_as_large(lead: float, expected: float) -> None:
    assert evidence().p_noise(lead) == pytest.approx(expected)


def test_tensors_go_round() -> None:
    again = evidence_from(evidence().tensors())
    assert again.probability(2.0, 1 / 8) == evidence().probability(2.0, 1 / 8)
    with pytest.raises(BundleError, match="missing"):
        evidence_from({})
    with pytest.raises(BundleError, match="slope"):
        scorer_from({})


def test_a_sentence_ends_at_its_end() -> None:
    words = ["<pad>", "<end>", "a", "red", "cat"]
    assert sentence(np.array([2, 3, 4, 1, 0, 3]), words, 1) == "a red cat"
    assert sentence(np.array([2, 4]), words, 1) == "a cat"
