from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import RidgeCV

from rtdecode.simulate import world
from rtdecode.simulate.features import EARLY, FRONT, MIDDLE, N_COMPONENTS, feature_covariance, picture_features
from rtdecode.simulate.fields import make_waves
from rtdecode.simulate.population import (
    LESS_SHARED,
    MOSTLY_SHARED,
    RESPONDING,
    SCALES_MM,
    SHIFT_MM,
    WARP_MM,
    Population,
    Share,
    posterior_cortex,
)


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    drawn = [world.sample_scene(rng) for _ in range(480)]
    return picture_features(drawn), np.array([scene.category for scene in drawn])


def places(n: int) -> np.ndarray:
    return posterior_cortex(np.random.default_rng(4), n)


def test_pictures_that_look_the_same_are_the_same_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    picture_features([world.sample_scene(np.random.default_rng(0))])
    monkeypatch.setitem(world._DRAW, "cat", world._DRAW["house"])  # type: ignore[attr-defined]
    cats, houses = (
        [world.sample_scene(np.random.default_rng(seed), category) for seed in range(20)]
        for category in ("cat", "house")
    )
    np.testing.assert_array_equal(picture_features(cats), picture_features(houses))


def test_features_have_their_variance_on_pictures_they_were_not_fitted_to() -> None:
    features, _ = pictures()
    observed = np.cov(features.T)
    for stage in (EARLY, MIDDLE, FRONT):
        expected = np.trace(feature_covariance()[stage, stage])
        assert np.trace(observed[stage, stage]) == pytest.approx(expected, rel=0.2)
    difference = features.mean(axis=0) / np.sqrt(np.diag(feature_covariance()))
    assert np.abs(difference).max() < 0.4


def test_half_of_what_differs_in_form_differs_between_categories() -> None:
    features, category = pictures()
    form = features[:, FRONT][:, :N_COMPONENTS]
    centres = np.stack([form[category == name].mean(axis=0) for name in category])
    assert 0.4 < centres.var(axis=0).sum() / form.var(axis=0).sum() < 0.65


def test_fields_have_the_covariance_of_their_scales() -> None:
    apart = np.array([[0.0, 0, 0], [3, 0, 0], [0, 8, 0], [0, 0, 20], [60, 0, 0]])
    expected = sum(share * np.exp(-(apart.max(axis=1) ** 2) / (2 * scale**2)) for scale, share in SCALES_MM.items())
    waves = make_waves(np.random.default_rng(1), SCALES_MM)(apart)
    np.testing.assert_allclose(waves @ waves[0], expected, atol=0.08)
    fields = waves @ np.random.default_rng(2).standard_normal((waves.shape[1], 4000))
    np.testing.assert_allclose((fields * fields[0]).mean(axis=1), expected, atol=0.12)


@pytest.mark.parametrize("share", [MOSTLY_SHARED, LESS_SHARED, Share(individual=0.0, voxel=0.0)])
def test_people_are_as_alike_at_a_place_as_the_share_says(share: Share) -> None:
    """Two people are shifted against each other by a normal vector, over which the kernel is averaged."""
    between = 2 * (SHIFT_MM**2 + WARP_MM**2)
    expected = share.common * sum(part * (1 + between / scale**2) ** -1.5 for scale, part in SCALES_MM.items())
    found = []
    for seed in range(60):
        population, where = Population(seed, share), places(300)[::5]
        fields = [population.voxels(person, where) for person in range(4)]
        for read in ("responds", "mean"):
            values = np.stack([getattr(voxels, read) for voxels in fields])
            values = values if read == "responds" else (values - 1) / 0.5
            likeness = values @ values.T / len(where)
            found.append(likeness[np.triu_indices(4, 1)].mean())
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert error < 0.04


def test_tuning_is_alike_in_people_of_one_population_only() -> None:
    where = places(400)

    def likeness(share: Share, strangers: bool = False) -> float:
        populations = [Population(5, share), Population(6 if strangers else 5, share)]
        covariance = feature_covariance()
        r = []
        for pair in range(6):
            a, b = (one.voxels(2 * pair + i, where).tuning for i, one in enumerate(populations))
            r.append((a * (covariance @ b)).sum(axis=0).mean())
        return float(np.mean(r))

    most, less, none = likeness(MOSTLY_SHARED), likeness(LESS_SHARED), likeness(MOSTLY_SHARED, strangers=True)
    assert most > less + 0.08 > none + 0.16


def test_voxels_have_tuning_of_unit_deviation_and_the_stated_fraction_responds() -> None:
    person = Population(1).person(2, n_voxels=600)
    features, _ = pictures()
    deviation = (features @ Population(1).voxels(2, person.places_mm).tuning).std(axis=0)
    assert np.median(deviation) == pytest.approx(1.0, rel=0.1)
    signal = person.responses(features).std(axis=0)
    assert (signal > 0).mean() == pytest.approx(RESPONDING, abs=0.01)


@pytest.mark.parametrize("seed", [0, 7])
def test_noise_is_shared_between_voxels_as_in_real_data(seed: int) -> None:
    pair, top = [], []
    for number in range(4):
        person = Population(seed).person(number)
        noise = person.noise.draw(np.random.default_rng(number), np.ones(3000, bool))
        assert noise.var() == pytest.approx(1.0, abs=0.02)
        r = np.corrcoef(noise.T)
        pair.append((r.sum() - len(r)) / (len(r) * (len(r) - 1)))
        top.append(np.linalg.eigvalsh(r)[-1] / len(r))
    assert 0.025 < np.mean(pair) < 0.04
    assert 0.075 < np.mean(top) < 0.1


def test_noise_at_rest_lacks_the_part_along_the_tuned_directions() -> None:
    person = Population(0).person(3, n_voxels=500)
    features, _ = pictures()
    responses = person.responses(features)
    responding = responses.std(axis=0) > 0
    rest = person.rest(4000, np.random.default_rng(1))
    np.testing.assert_allclose(rest[:, responding].var(axis=0), 0.85, atol=0.1)
    np.testing.assert_allclose(rest[:, ~responding].var(axis=0), 1.0, atol=0.12)
    noise = person.noise.draw(np.random.default_rng(1), np.ones(4000, bool))
    leading = np.linalg.svd(responses - responses.mean(axis=0), full_matrices=False)[2][:8]
    assert (noise @ leading.T).var(axis=0).sum() > 1.5 * (rest @ leading.T).var(axis=0).sum()


def test_noise_along_the_tuning_cannot_be_learned_away() -> None:
    """Even with all maps and noise known, no weighting of the voxels tells the leading directions from their noise."""
    for number in range(3):
        person = Population(1, MOSTLY_SHARED).person(number, n_voxels=800)
        along = person.noise.tuned.astype(float)
        tuned = np.linalg.norm(along, axis=0) > 0
        assert np.square(along[:, tuned]).sum(axis=0).mean() == pytest.approx(0.15, rel=1e-4)
        values, vectors = np.linalg.eigh(feature_covariance())
        signal = (vectors * np.sqrt(np.clip(values, 0, None))).T @ person.weights.astype(float)
        leading = np.linalg.svd(signal, full_matrices=False)[2][:8]
        np.testing.assert_allclose(along @ leading.T @ leading, along, atol=1e-3)
        noise = np.diag(person.noise.alone.astype(float) ** 2)
        noise += (person.noise.nearby.T @ person.noise.nearby).toarray()
        noise += person.noise.lasting.T.astype(float) @ person.noise.lasting + along.T @ along
        leads = np.linalg.eigh(signal @ signal.T)[1][:, :-9:-1].T @ signal
        ratio = np.linalg.eigvalsh(leads @ np.linalg.solve(noise, leads.T))
        assert ratio.max() < np.square(leads).sum() / np.square(along).sum()


def test_noise_of_neighbours_is_alike_by_their_distance() -> None:
    person = Population(0).person(3, n_voxels=500)
    nearby = person.noise.nearby.toarray().astype(float)
    covariance = nearby.T @ nearby
    deviation = np.sqrt(np.diag(covariance))
    apart = cdist(person.places_mm, person.places_mm)
    difference = covariance / np.outer(deviation, deviation) - np.exp(-(apart**2) / (2 * 3.5**2))
    assert np.abs(difference[apart < 12]).mean() < 0.06


def test_a_trial_is_the_response_and_noise_and_sometimes_a_lapse() -> None:
    person = Population(0).person(3, n_voxels=400)
    features, _ = pictures()
    shown = np.tile(features[:4], (500, 1))
    betas = person.betas(shown, np.random.default_rng(0)).reshape(500, 4, -1).mean(axis=0)
    expected = 0.95 * person.responses(features[:4]) + 0.05 * 0.3 * person.mean
    np.testing.assert_allclose(betas, expected, atol=0.25)
    assert np.abs(betas - expected).mean() < 0.05


def test_a_decoder_from_scratch_is_good_and_far_from_perfect() -> None:
    features, _ = pictures()
    target = np.linalg.svd(features[:, FRONT] - features[:, FRONT].mean(axis=0), full_matrices=False)[0]
    ranks = []
    for number in range(4):
        betas = Population(0).person(number).betas(features, np.random.default_rng(number))
        fitted = RidgeCV(np.logspace(1, 6, 11)).fit(betas[:240], target[:240])
        found, true = fitted.predict(betas[240:320]), target[240:320]
        score = np.corrcoef(found, true)[:80, 80:]
        ranks.append((score < np.diag(score)[:, None]).sum(axis=1).mean() / 79)
    assert 0.7 < np.mean(ranks) < 0.93


def test_a_seed_is_a_person() -> None:
    features, _ = pictures()
    one, again = (Population(2).person(5, n_voxels=100) for _ in range(2))
    np.testing.assert_array_equal(one.places_mm, again.places_mm)
    np.testing.assert_array_equal(
        one.betas(features[:5], np.random.default_rng(1)), again.betas(features[:5], np.random.default_rng(1))
    )
    for other in (Population(2).person(6, n_voxels=100), Population(3).person(5, n_voxels=100)):
        assert not np.allclose(one.weights, other.weights)


def test_voxels_lie_in_posterior_cortex_and_too_many_are_refused() -> None:
    found = places(1600)
    assert len(np.unique(found, axis=0)) == 1600
    assert found[:, 1].max() < -35
    with pytest.raises(ValueError, match=r"at most \d+ voxels of posterior cortex, got 99999"):
        Population(0).person(1, n_voxels=99999)


@pytest.mark.parametrize("share", [Share(individual=-0.1, voxel=0.0), Share(individual=0.8, voxel=0.3)])
def test_a_share_that_cannot_be_is_refused(share: Share) -> None:
    with pytest.raises(ValueError, match="leave 0 or more in common"):
        Population(0, share)
