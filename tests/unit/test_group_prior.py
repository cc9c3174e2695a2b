from __future__ import annotations

import numpy as np
import pytest

from calibration.encoding.encoder import fit_encoder
from calibration.encoding.group_prior import GroupPrior, learn_group_prior, statistics_of
from calibration.encoding.maps import MapPrior
from calibration.encoding.picture_space import learn_picture_space
from calibration.regression import folds
from rtdecode.errors import CalibrationError
from rtdecode.statistics import percentile_ranks

K = 6
SPECTRUM = np.full(K, 1 / K)


class People:
    """People whose tuning is one smooth function of place, and noise of each voxel alone."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._waves = self._rng.standard_normal((3, 40)) / 12
        self._phases = self._rng.uniform(0, 2 * np.pi, 40)
        self._template = 0.12 * self._rng.standard_normal((40, K))

    def draw(self, n: int, v: int = 250) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Components (n, k), responses (n, v), places (v, 3), weights (k, v)."""
        places = self._rng.uniform(-25, 25, (v, 3))
        weights = (np.cos(places @ self._waves + self._phases) @ self._template).T
        components = self._rng.standard_normal((n, K))
        responses = components @ weights + 0.5 + self._rng.standard_normal((n, v))
        return components, responses.astype(np.float32), places, weights


def learned(people: People, n: int, trials: int = 80) -> GroupPrior:
    return learn_group_prior([statistics_of(*people.draw(trials)[:3]) for _ in range(n)], SPECTRUM)


def test_statistics_hold_no_trial_and_give_least_squares() -> None:
    components, responses, places, _ = People(0).draw(40)
    kept = statistics_of(components, responses, places)
    assert kept.gram.shape == (K + 1, K + 1)
    assert kept.products.shape == (K + 1, 250)
    expected = np.linalg.lstsq(np.column_stack([np.ones(40), components]), responses, rcond=None)[0]
    np.testing.assert_allclose(np.linalg.solve(kept.gram, kept.products), expected, atol=1e-3)


def test_more_others_teach_more() -> None:
    errors = []
    for seed in (1, 11, 12):
        people = People(seed)
        *_, places, truth = people.draw(1)
        priors = [learned(people, n).at(places) for n in (2, 5, 15)]
        errors.append([np.square(prior.mean - truth).mean() / np.square(truth).mean() for prior in priors])
    few, some, many = np.mean(errors, axis=0)
    assert few > some > many
    assert many < 0.1


def test_the_usual_response_is_learned() -> None:
    people = People(2)
    prior = learned(people, 8).at(people.draw(1)[2])
    assert prior.constant is not None
    assert np.median(prior.constant) == pytest.approx(0.5, abs=0.1)
    assert 0 < prior.constant_variance < 0.2


def test_nothing_is_expected_far_from_anyone() -> None:
    prior = learned(People(3), 2).at(np.full((1, 3), 500.0))
    np.testing.assert_array_equal(prior.mean, 0)


def test_a_single_person_is_refused() -> None:
    with pytest.raises(CalibrationError, match="two or more people"):
        learned(People(4), 1)


def ranks(people: People, group: GroupPrior, n: int, *, shuffled: bool = False) -> float:
    """Percentile rank of 40 new pictures after n trials."""
    rng = np.random.default_rng(5)
    components, responses, places, weights = people.draw(n)
    test = rng.standard_normal((40, K))
    seen = (test @ weights + 0.5 + rng.standard_normal((40, 250))).astype(np.float32)
    encoder = fit_encoder(
        responses,
        components,
        [lambda voxels: group.at(places[voxels]), lambda _: MapPrior(covariance=np.diag(SPECTRUM))],
        parts=folds(np.arange(n), least=4) if n else [],
        shown=np.arange(n),
        rest=rng.standard_normal((60, 250)).astype(np.float32),
    )
    scores = encoder.whole.scores(seen, test)
    if shuffled:
        scores = scores[:, rng.permutation(40)]
    return float(np.diagonal(percentile_ranks(scores)).mean())


def test_a_new_person_is_decoded_before_any_trial() -> None:
    people = People(6)
    group = learned(people, 10)
    assert ranks(people, group, 0) > 0.8
    assert ranks(people, group, 24) > 0.8


def test_wrong_announcements_are_at_chance() -> None:
    people = People(7)
    group = learned(people, 10)
    found = [ranks(people, group, n, shuffled=True) for n in (0, 8, 12, 16, 20, 24)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_components_of_a_pool_are_white_and_ordered() -> None:
    rng = np.random.default_rng(8)
    tokens = rng.standard_normal((300, 4, 5)) * np.arange(1, 6)
    space = learn_picture_space(tokens, (slice(0, 8), slice(8, 20)), (3, 4))
    components = space(tokens)
    np.testing.assert_allclose(
        components.T @ components / 300, np.diag(np.diag(components.T @ components / 300)), atol=1
    )
    for part in (slice(0, 3), slice(3, 7)):
        np.testing.assert_allclose(np.cov(components[:, part].T, bias=True), np.eye(part.stop - part.start), atol=1e-8)
        assert (np.diff(space.spectrum[part]) <= 0).all()
    flat = tokens.reshape(300, -1)
    variance = np.linalg.eigvalsh(np.cov(flat[:, :8].T, bias=True))[::-1]
    np.testing.assert_allclose(space.spectrum[:3], variance[:3] / variance.sum() / 2, rtol=1e-6)
    assert space(tokens[:0]).shape == (0, 7)
