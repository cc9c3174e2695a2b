"""The simulated film: the same for the same seed, announced as a film, and predicted of others than who watches it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtdecode.simulate.acquisition import Acquisition, NoiseParameters
from rtdecode.simulate.film import FilmPlan, parcel_labels, predict_film
from rtdecode.simulate.film_parcels import FilmParcels
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol

PROTOCOL = Protocol(shape=(32, 32, 12), voxel_mm=(6.8, 6.8, 10.0), t_r_s=1.5)
PLAN = FilmPlan(seed=2, runs=1, volumes_per_run=60)


@pytest.fixture(scope="module")
def person() -> Participant:
    return make_participant(2, PROTOCOL, ResponseParameters(n_responsive=100, lapses=0.0, trial_noise=0.0))


def test_a_plan_is_fixed_by_its_seed_and_closes_the_eyes_when_told() -> None:
    assert PLAN.trials == FilmPlan(seed=2, runs=1, volumes_per_run=60).trials
    assert PLAN.trials != FilmPlan(seed=3, runs=1, volumes_per_run=60).trials
    closed = FilmPlan(seed=2, runs=1, volumes_per_run=60, closed_s=((1, 30.0, 45.0),))
    kinds = {shot.onset_s: shot.kind for shot in closed.trials}
    assert {onset_s for onset_s, kind in kinds.items() if kind == "blank"} == {30.0, 33.0, 36.0, 39.0, 42.0}
    assert PLAN.duration_s == 84.0


def test_its_film_is_announced_in_place_of_the_shots() -> None:
    told: list[dict[str, Any]] = []
    announce = PLAN.announcing(told.append)
    for kind in ("run_start", "trial", "trial", "run_end"):
        announce({"kind": kind, "run": 1})
    assert [one["kind"] for one in told] == ["run_start", "film", "run_end"]
    assert told[1] == {"kind": "film", "run": 1, "stimulus": "film1", "onset_s": 6.0}


def test_what_is_heard_comes_with_its_words_and_is_heard_with_closed_eyes() -> None:
    plan = FilmPlan(seed=2, runs=1, volumes_per_run=60, sound=True, closed_s=((1, 30.0, 60.0),))
    heard = [one for one in plan.trials if one.kind in ("noise", "speech")]
    assert [one for one in plan.trials if one not in heard] == list(
        FilmPlan(seed=2, runs=1, volumes_per_run=60, closed_s=((1, 30.0, 60.0),)).trials
    )
    assert {one.kind for one in heard} == {"noise", "speech"}
    assert any(30 <= one.onset_s < 60 for one in heard)
    said = [one for one in heard if one.kind == "speech"]
    words = plan.transcript(1)
    assert [word for _, _, word in words] == [word for one in said for word in ("there", "is", "a", one.condition)]
    onsets = [one.onset_s - 6.0 + 0.4 * place for one in said for place in range(4)]
    np.testing.assert_allclose([onset for onset, _, _ in words], onsets)
    assert plan.transcript(1)[-1][0] < plan.duration_s
    assert PLAN.transcript(1) == []


def test_the_prediction_tells_what_it_rests_on_and_what_is_missing(person: Participant) -> None:
    labels = parcel_labels(person, side_mm=20.0)
    silent = predict_film(PLAN, 1, labels, [person])
    loud = predict_film(FilmPlan(seed=2, runs=1, volumes_per_run=60, sound=True), 1, labels, [person])
    assert (silent.about.modalities, silent.about.absent.keys()) == (["vision"], {"text", "audio"})
    assert (loud.about.modalities, loud.about.absent) == (["text", "audio", "vision"], {})
    more = np.abs(loud.predicted - silent.predicted).max(0) > 1e-6
    assert 0 < more.sum() < len(more)  # some parcels hear


def test_parcels_have_voxels_enough_and_lie_in_the_region(person: Participant) -> None:
    labels = parcel_labels(person, side_mm=20.0)
    sizes = np.bincount(labels.ravel())[1:]
    assert len(sizes) > 10
    assert sizes.min() >= 5
    assert person.region()[labels > 0].all()


@pytest.mark.parametrize("sound", [False, True])
def test_the_prediction_of_a_brain_is_what_its_volumes_do_without_noise(person: Participant, sound: bool) -> None:
    plan = FilmPlan(seed=2, runs=1, volumes_per_run=60, sound=sound)
    labels = parcel_labels(person, side_mm=20.0)
    found = predict_film(plan, 1, labels, [person])
    quiet = NoiseParameters(
        thermal_tsnr=1e6, autoregressive=0.0, physiological=0.0, common=0.0, drift=0.0, motion_walk_mm=0.0, spikes=0
    )
    evoked = person.responses([shot.scene for shot in plan.trials], [shot.kind for shot in plan.trials])
    volumes = np.array(list(Acquisition(person, quiet).run(1, plan.trials, evoked, plan.volumes_per_run)), float)
    first = round(PLAN.onset_s / PLAN.t_r_s)
    correlations = []
    for label, predicted in enumerate(found.predicted.T, 1):
        if predicted.std() > 0:
            measured = volumes[first : first + len(predicted), labels == label].mean(1)
            correlations.append(np.corrcoef(measured[10:], predicted[10:])[0, 1])
    assert len(correlations) > 8
    assert np.median(correlations) > 0.95
    assert found.about.parcels == [str(label) for label in range(1, labels.max() + 1)]


def test_simulated_parcels_correlate_with_their_prediction_as_asked() -> None:
    world = FilmParcels(seed=1, parcels=300, correlation=0.3)
    shown = world.predicted(1, 600)
    measured = world.measured(shown, 1)
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(shown.T, measured.T, strict=True)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(measured.std(0), 1, atol=0.25)
    noise = measured - world.measured(shown, 1, following=np.zeros(600, bool))
    gains = (noise * shown).sum(0) / (shown**2).sum(0)
    np.testing.assert_allclose(noise, shown * gains, atol=1e-9)
