"""Encoding models, held out and whole, on responses whose truth is planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from calibration.encoding import encoder as module
from calibration.encoding.encoder import Encoder, Inverted, fit_encoder, log_shares
from calibration.encoding.maps import MapPrior

K = 6
PRIOR = MapPrior(covariance=np.eye(K) / K)


@pytest.fixture(autouse=True)
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOXEL_COUNTS", (10, 40, 160))
    monkeypatch.setattr(module, "RANKS", (0, 2, 5, 10))


def planted(
    seed: int, *, n: int = 96, v: int = 160, responsive: int = 40, shared: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Responses (n, v) of which the first `responsive` voxels answer to components (n, K); noise of a given rank."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, K))
    maps = np.zeros((K, v))
    maps[:, :responsive] = 0.35 * rng.standard_normal((K, responsive))
    noise = rng.standard_normal((n, v)) + 1.2 * rng.standard_normal((n, shared)) @ rng.standard_normal((shared, v))
    responses = features @ maps + noise
    return ((responses - responses.mean(0)) / responses.std(0)).astype(np.float32), features


def fitted(responses: np.ndarray, features: np.ndarray, shown: np.ndarray | None = None) -> Encoder:
    n = len(responses)
    parts = np.array_split(np.arange(n), 4)
    return fit_encoder(
        responses, features, [lambda _: PRIOR], parts=parts, shown=np.arange(n) if shown is None else shown
    )


def same(one: Inverted, other: Inverted) -> bool:
    pairs = [
        (one.voxels, other.voxels),
        (one.inverse.projection, other.inverse.projection),
        (one.inverse.information, other.inverse.information),
        (one.inverse.mean, other.inverse.mean),
        (one.noise.own, other.noise.own),
        (one.noise.shared, other.noise.shared),
    ]
    return all(np.array_equal(first, second) for first, second in pairs)


def accuracy(encoder: Encoder, responses: np.ndarray, features: np.ndarray) -> float:
    """Share of trials whose picture is the best of its fold, by models without them."""
    right = [
        held.scores(responses[part], features[part]).argmax(1) == np.arange(len(part))
        for part, held in zip(encoder.parts, encoder.held, strict=True)
    ]
    return float(np.mean(np.concatenate(right)))


def test_held_out_trials_have_no_part_in_the_model_that_judges_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, only in (("VOXEL_COUNTS", (40,)), ("RANKS", (5,)), ("TEMPERATURES", np.array([0.3])), ("BLURS", (0.1,))):
        monkeypatch.setattr(module, name, only)
    responses, features = planted(0)
    before = fitted(responses, features)
    rng = np.random.default_rng(1)
    fold = before.parts[2]
    other_responses, other_features = responses.copy(), features.copy()
    other_responses[fold] = rng.standard_normal((len(fold), responses.shape[1]))
    other_features[fold] = rng.standard_normal((len(fold), K))
    after = fitted(other_responses, other_features)
    assert same(before.held[2], after.held[2])
    assert not any(same(before.held[i], after.held[i]) for i in (0, 1, 3))
    assert not same(before.whole, after.whole)


def test_a_fold_is_judged_by_what_the_other_folds_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    responses, features = planted(0)
    seen: list[np.ndarray] = []
    choose = module._choose

    def kept(likelihood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(likelihood)
        return choose(likelihood)

    monkeypatch.setattr(module, "_choose", kept)
    encoder = fitted(responses, features)
    *of_folds, whole = seen
    assert np.isfinite(whole).all()
    for part, likelihood in zip(encoder.parts, of_folds, strict=True):
        np.testing.assert_array_equal(likelihood, np.delete(whole, part, axis=2))


def test_planted_pictures_are_recognised_and_shuffled_ones_are_not() -> None:
    responses, features = planted(2)
    found = accuracy(fitted(responses, features), responses, features)
    assert found > 0.4  # 1 / 24 is chance
    rng = np.random.default_rng(3)
    orders = [rng.permutation(len(features)) for _ in range(8)]
    by_chance = [accuracy(fitted(responses, features[order]), responses, features[order]) for order in orders]
    assert np.mean(by_chance) == pytest.approx(1 / 24, abs=3 * np.sqrt(1 / 24 / (8 * 96)) + 0.005)


def test_the_size_of_the_responsive_part_and_the_rank_of_the_noise_are_found() -> None:
    for seed in range(3):
        plain = fitted(*planted(seed, n=160)).weights
        noisy = fitted(*planted(seed, n=160, shared=5)).weights
        assert sum(weight for (_, size, _), weight in plain.items() if size == 10) < 0.05
        assert sum(weight for (_, _, rank), weight in noisy.items() if rank >= 5) > 0.95
        assert sum(plain.values()) == pytest.approx(1)
    small = [fitted(*planted(seed, n=160, responsive=10)).weights for seed in range(3)]
    assert np.mean([sum(w for (_, size, _), w in one.items() if size < 160) for one in small]) > 0.6


def test_the_voxels_used_are_those_that_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOXEL_COUNTS", (40,))
    responses, features = planted(4)
    found = fitted(responses, features).whole.voxels
    assert np.mean(found < 40) > 0.8


def test_repeats_of_a_picture_are_one_picture() -> None:
    shown = np.repeat(np.arange(32), 3)
    rng = np.random.default_rng(6)
    twice = rng.standard_normal((32, K))[shown]
    maps = rng.standard_normal((K, 160))
    answers = (twice @ maps + 2 * rng.standard_normal((96, 160))).astype(np.float32)
    encoder = fitted(answers, twice, shown)
    part, held = encoder.parts[0], encoder.held[0]
    pictures = twice[part][::3]
    right = held.scores(answers[part], pictures).argmax(1) == np.repeat(np.arange(8), 3)
    assert right.mean() > 0.9


def test_likelihoods_at_each_temperature_are_those_of_a_softmax() -> None:
    rng = np.random.default_rng(5)
    scores, shown = 20 * rng.standard_normal((6, 9)) + 1e4, rng.integers(0, 9, 6)
    temperatures = np.array([0.01, 0.3, 2.0])
    found = log_shares(scores, shown, temperatures)
    expected = [log_softmax(t * scores, axis=1)[np.arange(6), shown] for t in temperatures]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
