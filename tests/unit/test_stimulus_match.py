"""Stimulus match against independent numbers, and its statistics on simulated parcels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rtdecode.decode.score.film_rows import MatchCalibration, calibrate_match, sampled, standardized
from rtdecode.decode.score.stimulus_match import DECOY_S, SETTLE, FilmMatch, Matched
from rtdecode.simulate.film_parcels import FilmParcels

T_R_S = 1.49
N = 160


def brain(seed: int = 0, parcels: int = 120, **more: float) -> FilmParcels:
    return FilmParcels(seed=seed, parcels=parcels, t_r_s=T_R_S, **more)  # type: ignore[arg-type]


def calibration(world: FilmParcels) -> MatchCalibration:
    shown = world.predicted(1, N)
    return calibrate_match(world.measured(shown, 1), shown)


def follow(
    predicted: np.ndarray,
    measured: np.ndarray,
    *,
    calibrated: MatchCalibration | None = None,
    onset_s: float = 0.0,
    window: int = 20,
    dropped: frozenset[int] = frozenset(),
) -> tuple[FilmMatch, list[Matched | str]]:
    match = FilmMatch(
        predicted, predicted_t_r_s=T_R_S, t_r_s=T_R_S, onset_s=onset_s, calibration=calibrated, window=window
    )
    return match, [match.add(index, values) for index, values in enumerate(measured) if index not in dropped]


def ranks(found: list[Matched | str]) -> np.ndarray:
    return np.array([one.rank for one in found if isinstance(one, Matched)])


def test_a_prediction_is_interpolated_between_the_middles_of_its_volumes() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal((30, 4)).astype(np.float32)
    times = np.sort(rng.uniform(-5, 60, 50))
    middles = (np.arange(30) + 0.5) * T_R_S
    expected = np.stack([np.interp(times, middles, column) for column in predicted.T], axis=1)
    np.testing.assert_allclose(sampled(predicted, T_R_S, times), expected, atol=1e-6)
    np.testing.assert_allclose(sampled(predicted, T_R_S, middles), predicted, atol=1e-6)


def test_the_calibrated_match_is_a_gaussian_log_likelihood_ratio() -> None:
    world = brain(parcels=12)
    learned = calibration(world)
    predicted = world.predicted(2, N)
    measured = world.measured(predicted, 2)
    _, found = follow(predicted, measured, calibrated=learned, window=3)
    expected = learned.gain * standardized(sampled(predicted, T_R_S, (np.arange(N) + 0.5) * T_R_S))
    scaled = (measured - learned.centre) / learned.scale
    places = np.arange(N)

    def likelihood(volume: int, place: int) -> float:
        return float(stats.multivariate_normal(expected[place % N], learned.noise).logpdf(scaled[volume]))

    volume = 33
    totals = np.array([sum(likelihood(v, v + shift) for v in range(volume - 2, volume + 1)) for shift in places])
    away = np.minimum(places, N - places) * T_R_S >= DECOY_S
    one = found[volume]
    assert isinstance(one, Matched)
    assert one.z == pytest.approx((totals[0] - totals[away].mean()) / totals[away].std(), rel=1e-6)
    assert one.rank == pytest.approx((totals[away] < totals[0]).mean())
    assert one.volumes == 3


def test_the_plain_match_is_the_correlation_over_parcels() -> None:
    world = brain()
    predicted = world.predicted(2, N)
    measured = world.measured(predicted, 2)
    _, found = follow(predicted, measured)
    scale = measured[:8].std(0)
    rows = standardized(predicted)
    for volume in (20, 50, 100):
        one = found[volume]
        assert isinstance(one, Matched)
        assert one.correlation == pytest.approx(np.corrcoef(measured[volume] / scale, rows[volume])[0, 1], abs=1e-9)


def test_noise_that_is_learned_is_the_half_shrunk_covariance_of_what_is_left() -> None:
    world = brain(parcels=5)
    shown = world.predicted(1, N)
    measured = 3 + 2 * world.measured(shown, 1)
    learned = calibrate_match(measured, shown)
    np.testing.assert_allclose(learned.centre, measured.mean(0))
    np.testing.assert_allclose(learned.scale, measured.std(0))
    gains = [max(np.corrcoef(a, b)[0, 1], 0) for a, b in zip(measured.T, shown.T, strict=True)]
    np.testing.assert_allclose(learned.gain, gains, atol=1e-9)
    left = standardized(measured) - np.array(gains) * standardized(shown)
    plain = left.T @ left / N
    np.testing.assert_allclose(learned.noise, np.where(np.eye(5) > 0, plain, plain / 2), atol=1e-9)


@pytest.mark.parametrize("calibrated", [False, True])
def test_followed_films_match_and_more_volumes_match_better(calibrated: bool) -> None:
    of_windows: dict[int, list[float]] = {1: [], 10: [], 20: [], 40: []}
    for seed in range(3):
        world = brain(seed, parcels=200, shared=1.0)
        learned = calibration(world) if calibrated else None
        predicted = world.predicted(2, N)
        measured = world.measured(predicted, 2)
        for window, means in of_windows.items():
            means.append(ranks(follow(predicted, measured, calibrated=learned, window=window)[1]).mean())
    shares = [float(np.mean(means)) for means in of_windows.values()]
    assert shares == sorted(shares)
    least = (0.9, 0.99, 0.99, 0.99) if calibrated else (0.55, 0.7, 0.75, 0.85)
    assert all(share >= one for share, one in zip(shares, least, strict=True)), shares


def test_the_match_peaks_where_the_film_is() -> None:
    world = brain(1, correlation=0.31)
    learned = calibration(world)
    predicted = world.predicted(2, N)
    measured = world.measured(predicted, 2)[:SETTLE]  # before an offset is estimated
    offsets = np.arange(-4, 5)
    for chosen in (None, learned):
        means = []
        for offset in offsets:
            found = follow(predicted, measured, calibrated=chosen, onset_s=offset * T_R_S)[1]
            means.append(np.mean([one.z for one in found[-10:] if isinstance(one, Matched)]))
        assert offsets[int(np.argmax(means))] == 0, means


@pytest.mark.parametrize("late_s", [-6.0, 3.0, 7.3])
def test_a_film_that_was_late_is_found_once_and_then_left_alone(late_s: float) -> None:
    world = brain(5, parcels=200)
    learned = calibration(world)
    predicted = world.predicted(2, N + 20)
    onset_s = 10.0
    middles = (np.arange(N) + 0.5) * T_R_S
    seen = sampled(predicted, T_R_S, middles - onset_s - late_s)
    match, found = follow(predicted, world.measured(seen, 2), calibrated=learned, onset_s=onset_s)
    assert match.offset_s == pytest.approx(late_s, abs=T_R_S / 2)
    (first,) = (place for place, one in enumerate(found) if "has been estimated" in str(one))
    assert ranks(found[first:]).mean() > 0.99


def test_a_film_that_began_when_announced_is_not_moved() -> None:
    world = brain(2, parcels=200)
    predicted = world.predicted(2, N)
    match, _ = follow(predicted, world.measured(predicted, 2), calibrated=calibration(world))
    assert match.offset_s == 0.0


def test_dropped_volumes_leave_the_rest_where_they_are() -> None:
    world = brain(3, parcels=200)
    predicted = world.predicted(2, N)
    dropped = frozenset(range(50, 54)) | {70, 71, 90}
    measured = world.measured(predicted, 2)
    measured[60] = np.nan
    match, found = follow(predicted, measured, calibrated=calibration(world), dropped=dropped)
    places = [index for index in range(N) if index not in dropped]
    at = dict(zip(places, found, strict=True))
    assert "left out" in str(at[60])
    window = at[72]
    assert isinstance(window, Matched)
    assert window.volumes == len(set(range(53, 73)) - dropped - {60})
    assert ranks(found)[20:].min() > 0.99
    assert match.offset_s == 0.0


def test_the_match_falls_when_the_eyes_are_closed_and_rises_again() -> None:
    world = brain(4, parcels=200)
    following = np.ones(240, bool)
    following[100:160] = False
    predicted = world.predicted(2, 240)
    measured = world.measured(predicted, 2, following=following)
    _, found = follow(predicted, measured, calibrated=calibration(world))
    z = np.array([one.z if isinstance(one, Matched) else np.nan for one in found])
    assert np.nanmin(z[60:100]) > 2
    assert np.nanmean(z[125:160]) < 1
    assert np.nanmin(z[190:]) > 2


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("what", ["another film", "shuffled time", "nothing"])
def test_without_the_film_the_match_is_at_chance_and_claims_are_rare(what: str, calibrated: bool) -> None:
    shares, claims = [], []
    for seed in range(40):
        world = brain(100 + seed, parcels=40)
        predicted, other = world.predicted(2, N), world.predicted(3, N)
        still = np.zeros(N, bool) if what == "nothing" else None
        measured = world.measured(other, 2, following=still)
        if what == "shuffled time":
            measured = world.measured(predicted, 2)[np.random.default_rng(seed).permutation(N)]
        match, highest = (
            FilmMatch(
                predicted,
                predicted_t_r_s=T_R_S,
                t_r_s=T_R_S,
                onset_s=0.0,
                calibration=calibration(world) if calibrated else None,
            ),
            0.0,
        )
        found = []
        for index, values in enumerate(measured):
            found.append(match.add(index, values))
            highest = max(highest, match.claim)
        shares.append(ranks(found).mean())
        claims.append(highest >= 20)
    spread = stats.t.ppf(0.995, len(shares) - 1) * np.std(shares, ddof=1) / math.sqrt(len(shares))
    assert abs(np.mean(shares) - 0.5) < spread
    assert sum(claims) <= stats.binom.ppf(0.99, len(claims), 0.05)


def test_a_film_that_is_followed_may_be_claimed() -> None:
    world = brain(6, parcels=200)
    predicted = world.predicted(2, N)
    match, _ = follow(predicted, world.measured(predicted, 2))
    assert match.claim > 20


def test_networks_are_told_apart() -> None:
    world = brain(7, parcels=200, correlation=0.4)
    predicted = world.predicted(2, N)
    measured = world.measured(predicted, 2)
    measured[:, 100:] = brain(8, parcels=200).measured(predicted, 3, following=np.zeros(N, bool))[:, 100:]
    names = ["Vis"] * 100 + ["Default"] * 100
    match = FilmMatch(predicted, predicted_t_r_s=T_R_S, t_r_s=T_R_S, onset_s=0.0, networks=names)
    found = [match.add(index, values) for index, values in enumerate(measured)]
    z = {
        name: np.mean([one.networks[name] for one in found if isinstance(one, Matched)]) for name in ("Vis", "Default")
    }
    assert z["Vis"] > 2
    assert abs(z["Default"]) < 1


def test_outside_of_the_film_there_is_no_match() -> None:
    world = brain(9)
    predicted = world.predicted(2, 60)
    measured = world.measured(world.predicted(2, 90), 2)
    _, found = follow(predicted, measured, onset_s=15 * T_R_S)
    assert all(one == "the film is not on" for one in [*found[:15], *found[75:]])
    assert isinstance(found[40], Matched)


def test_another_repetition_time_of_the_session_is_bridged() -> None:
    world = brain(10, parcels=200)
    predicted = world.predicted(2, 220)
    middles = (np.arange(150) + 0.5) * 2.0
    measured = world.measured(sampled(predicted, T_R_S, middles), 2)
    match = FilmMatch(predicted, predicted_t_r_s=T_R_S, t_r_s=2.0, onset_s=0.0)
    found = [match.add(index, values) for index, values in enumerate(measured)]
    assert ranks(found)[30:].mean() > 0.95
