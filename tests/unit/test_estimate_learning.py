"""What earlier runs teach, against brute-force likelihoods and simulated truth."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rtdecode.estimate import learning
from rtdecode.estimate.design import RunTiming, scaled_drift, trial_regressors
from rtdecode.estimate.glm import Scales, whiten
from rtdecode.estimate.learning import FinishedRun, Prior, fit_scales, lag_likelihood, mean_response
from rtdecode.records import TrialEvent

TIMING = RunTiming(t_r_s=2.0, phase_s=1.0, high_pass_hz=0.01, hrf="glover")
START = Scales(trial=0.3, mean=0.3, drift_per_s=0.01, motion_per_mm2=1.0, rho=0.3)
TRUE = Scales(trial=1.0, mean=1.0, drift_per_s=0.02, motion_per_mm2=4.0, rho=0.3)


def simulate(
    seed: int, *, lag_s: float = 0.0, n_voxels: int = 300, spacing_s: float = 20.0
) -> tuple[FinishedRun, np.ndarray]:
    """A run drawn from the model itself, and the mean responses in it."""
    rng = np.random.default_rng(seed)
    rows = np.delete(np.arange(130), [17, 18, 60])
    events = tuple(
        TrialEvent(run=1, trial=str(i), onset_s=10 + spacing_s * i, duration_s=6.0) for i in range(int(240 / spacing_s))
    )
    trials, _ = trial_regressors(TIMING, rows, events, lag_s)
    drift = scaled_drift(TIMING, rows)
    motion = 0.3 * rng.standard_normal((len(rows), 6)).cumsum(0) / 10
    motion -= motion.mean(0)
    mean = 2.0 * np.random.default_rng(99).standard_normal(n_voxels)
    noise = np.linalg.solve(whiten(np.eye(len(rows)), rows, TRUE.rho), rng.standard_normal((len(rows), n_voxels)))
    series = noise + np.outer(trials.sum(1), mean)
    for part, scale in ((trials, TRUE.trial), (drift, TRUE.drift_per_s), (motion, TRUE.motion_per_mm2)):
        series += np.sqrt(scale) * part @ rng.standard_normal((part.shape[1], n_voxels))
    percent = (series - series.mean(0)).astype(np.float32)
    return FinishedRun(timing=TIMING, events=events, rows=rows, motion=motion, percent=percent), mean


def test_covariance_is_the_sum_of_the_parts_of_the_model() -> None:
    run, _ = simulate(0)
    trials, _ = trial_regressors(TIMING, run.rows, run.events, 1.5)
    drift, total = scaled_drift(TIMING, run.rows), trials.sum(1)
    white = whiten(np.eye(len(run.rows)), run.rows, TRUE.rho)
    expected = np.linalg.inv(white.T @ white) + TRUE.mean * np.outer(total, total)
    expected += TRUE.trial * trials @ trials.T + TRUE.drift_per_s * drift @ drift.T
    expected += TRUE.motion_per_mm2 * run.motion @ run.motion.T
    np.testing.assert_allclose(learning.Parts(run, 1.5).covariance(TRUE), expected, atol=1e-9)


def test_restricted_likelihood_equals_the_density_of_contrasts() -> None:
    """Any basis of the contrasts free of the level gives it up to a constant (Harville 1974)."""
    run, _ = simulate(1, n_voxels=5)
    t = len(run.rows)
    contrast = np.diff(np.eye(t), axis=0)
    y = run.percent[:, 0].astype(np.float64)

    def expected(scales: Scales) -> float:
        covariance = learning.Parts(run, 0.0).covariance(scales)
        return float(stats.multivariate_normal(cov=contrast @ covariance @ contrast.T).logpdf(contrast @ y))

    def got(scales: Scales) -> float:
        forms, log_determinant = learning.quadratic_forms(learning.Parts(run, 0.0).covariance(scales), y[:, None])
        return -0.5 * (float(forms[0]) + log_determinant)

    other = replace(TRUE, trial=0.1, drift_per_s=0.2)
    assert got(TRUE) - got(other) == pytest.approx(expected(TRUE) - expected(other), abs=1e-6)


@pytest.mark.parametrize("lag_s", [-4.5, 0.0, 2.0])
def test_the_lag_is_found(lag_s: float) -> None:
    run, _ = simulate(2, lag_s=lag_s)
    assert abs(learning.LAGS_S[np.argmax(lag_likelihood(run, START))] - lag_s) <= 0.5


def test_lags_that_would_swap_trials_are_ruled_out() -> None:
    run, _ = simulate(3, spacing_s=4.0)
    likelihood = lag_likelihood(run, START)
    assert np.isfinite(likelihood[np.abs(learning.LAGS_S) <= 1.5]).all()
    assert np.isneginf(likelihood[np.abs(learning.LAGS_S) >= 2.0]).all()


def test_scales_are_found() -> None:
    runs = [simulate(seed)[0] for seed in range(4)]
    found = fit_scales(runs, 0.0, START)
    assert found.trial == pytest.approx(TRUE.trial, rel=0.5)
    assert found.drift_per_s == pytest.approx(TRUE.drift_per_s, rel=0.5)
    assert found.motion_per_mm2 == pytest.approx(TRUE.motion_per_mm2, rel=0.5)


def test_mean_response_is_generalised_least_squares() -> None:
    run, mean = simulate(5)
    trials, _ = trial_regressors(TIMING, run.rows, run.events, 0.0)
    covariance = learning.Parts(run, 0.0).covariance(replace(TRUE, mean=0.0))
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T
    fixed = np.column_stack([np.ones(len(run.rows)), trials.sum(1)])
    expected = np.linalg.lstsq(whitener @ fixed, whitener @ run.percent, rcond=None)[0][1]
    got = mean_response(run, TRUE, 0.0)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.corrcoef(got, mean)[0, 1] > 0.95


def test_prior_knows_nothing_until_a_run_is_over() -> None:
    prior = Prior(learn=True, learn_lag=True)
    before = prior.expectation(2.0)
    assert before.scales is not None
    assert before.scales.trial == 0.5
    assert (before.lag_s, before.mean_response) == (0.0, None)
    run, mean = simulate(6, lag_s=-2.0)
    prior.add(1, run)
    after = prior.expectation(2.0)
    assert abs(after.lag_s + 2.0) <= 0.5
    assert after.mean_response is not None
    assert np.corrcoef(after.mean_response, mean)[0, 1] > 0.95


def test_the_mean_response_can_be_had_without_a_run() -> None:
    prior = Prior(learn=True, learn_lag=False)
    assert prior.mean_response() is None
    runs = [simulate(seed, n_voxels=40)[0] for seed in range(8)]
    prior.add(1, runs[0])
    assert prior.mean_response(without=1) is not None  # there is no other
    for number, run in enumerate(runs[1:], start=2):
        prior.add(number, run)
    scales = prior.expectation(1.0).scales
    assert scales is not None
    means = {number: mean_response(run, scales, 0.0) for number, run in enumerate(runs, start=1)}
    for without, used in ((None, range(3, 9)), (5, (3, 4, 6, 7, 8)), (2, range(3, 9))):
        found = prior.mean_response(without=without)
        np.testing.assert_allclose(found, np.mean([means[number] for number in used], axis=0), rtol=1e-5, atol=1e-6)


def test_what_is_not_to_be_learned_is_not() -> None:
    run, _ = simulate(7, lag_s=-2.0)
    without_lag, nothing = Prior(learn=True, learn_lag=False), Prior(learn=False, learn_lag=True)
    for prior in (without_lag, nothing):
        prior.add(1, run)
    assert without_lag.expectation(2.0).lag_s == 0.0
    assert nothing.expectation(2.0).scales is None
    assert nothing.expectation(2.0).mean_response is None


def test_dark_and_constant_voxels_do_no_harm() -> None:
    run, _ = simulate(8)
    percent = run.percent.copy()
    percent[:, :200] = 0
    prior = Prior(learn=True, learn_lag=True)
    prior.add(1, replace(run, percent=percent))
    expected = prior.expectation(2.0)
    assert expected.mean_response is not None
    assert np.isfinite(expected.mean_response).all()


def test_series_kept_on_disk_teach_the_same(tmp_path: Path) -> None:
    here, there = Prior(learn=True, learn_lag=True), Prior(learn=True, learn_lag=True, scratch=tmp_path)
    for number in range(8):
        run, _ = simulate(number, n_voxels=40)
        here.add(number, run)
        there.add(number, run)
    one, other = here.expectation(1.0), there.expectation(1.0)
    assert one.scales is not None
    assert other.scales is not None
    assert astuple(one.scales) == astuple(other.scales)
    assert one.mean_response is not None
    np.testing.assert_array_equal(one.mean_response, other.mean_response)
    assert sum(run.percent.nbytes for run, _ in there._runs) == 0
    assert len(list(tmp_path.iterdir())) == 6


def test_series_stay_in_memory_where_the_disk_has_no_room(tmp_path: Path) -> None:
    here, there = Prior(learn=True, learn_lag=False), Prior(learn=True, learn_lag=False, scratch=tmp_path / "gone")
    for number in range(2):
        run, _ = simulate(number, n_voxels=40)
        here.add(number, run)
        there.add(number, run)
    one, other = here.expectation(1.0).scales, there.expectation(1.0).scales
    assert one is not None
    assert other is not None
    assert astuple(one) == astuple(other)
