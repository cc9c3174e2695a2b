"""Regressors against nilearn and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix
from scipy import integrate, stats

from rtdecode.estimate import design
from rtdecode.records import TrialEvent

ROWS = np.arange(120)


def timing(hrf: design.Hrf = "glover", high_pass_hz: float = 0.01) -> design.RunTiming:
    return design.RunTiming(t_r_s=1.5, phase_s=0.75, high_pass_hz=high_pass_hz, hrf=hrf)


def event(onset_s: float, duration_s: float = 2.0) -> TrialEvent:
    return TrialEvent(run=1, trial=f"at {onset_s}", onset_s=onset_s, duration_s=duration_s)


@pytest.mark.parametrize("hrf", ["glover", "spm"])
@pytest.mark.parametrize(("onset_s", "duration_s"), [(10.0, 2.0), (33.3, 22.5), (60.1, 0.5)])
def test_trial_regressor_equals_nilearn(hrf: design.Hrf, onset_s: float, duration_s: float) -> None:
    events = pd.DataFrame({"onset": [onset_s], "duration": [duration_s], "trial_type": ["x"]})
    times = timing().times_s(ROWS)
    expected = make_first_level_design_matrix(times, events, hrf_model=hrf, drift_model=None, oversampling=500)[
        "x"
    ].to_numpy()
    got = design.trial_regressor(times, onset_s, duration_s, hrf)
    np.testing.assert_allclose(got, expected, atol=0.004 * expected.max())


@pytest.mark.parametrize("time_s", [0.0, 1.0, 5.0, 12.0, 31.0])
def test_cumulative_response_is_the_integral_of_the_published_one(time_s: float) -> None:
    def response(t: float) -> float:
        late = stats.gamma.pdf(t, 12 / 0.9, scale=0.9)
        return float(stats.gamma.pdf(t, 6 / 0.9, scale=0.9) - 0.48 * late)

    expected = integrate.quad(response, 0, time_s)[0] / integrate.quad(response, 0, 32)[0]
    assert design.cumulative_hrf(np.array(time_s), "glover") == pytest.approx(expected, abs=1e-8)


def test_nothing_before_the_onset_and_a_plateau_of_one() -> None:
    times = np.arange(0, 100, 0.5)
    regressor = design.trial_regressor(times, 20.0, 60.0, "spm")
    assert np.all(regressor[times <= 20] == 0)
    np.testing.assert_allclose(regressor[(times > 52) & (times < 80)], 1.0, atol=1e-12)


def test_an_impulse_is_the_response_itself() -> None:
    times = np.linspace(0, 30, 61)
    step = 1e-3
    density = (design.cumulative_hrf(times, "spm") - design.cumulative_hrf(times - step, "spm")) / step
    np.testing.assert_allclose(design.trial_regressor(times, 0.0, 0.0, "spm"), density)


def test_cosines_equal_nilearn() -> None:
    times = timing().times_s(ROWS)
    matrix = make_first_level_design_matrix(times, drift_model="cosine", high_pass=0.01)
    expected = matrix[[name for name in matrix.columns if name.startswith("drift")]].to_numpy()
    got = design.drift_cosines(ROWS, len(ROWS), 1.5, 0.01)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected * np.sqrt(len(ROWS) / 2), atol=1e-9)


def test_missing_volumes_leave_the_other_rows_alone() -> None:
    kept = ROWS[ROWS % 7 != 3]
    np.testing.assert_array_equal(design.scaled_drift(timing(), kept), design.scaled_drift(timing(), ROWS)[kept])


def test_drift_has_the_covariance_of_a_random_walk() -> None:
    """Every cosine up to the sampling limit: a demeaned Brownian path, whatever the length."""
    for length in (50, 90):
        basis = design.scaled_drift(timing(high_pass_hz=1e3), np.arange(length))
        walk = 1.5 * np.minimum.outer(np.arange(length), np.arange(length)).astype(float)
        centre = np.eye(length) - 1 / length
        expected = centre @ walk @ centre
        np.testing.assert_allclose(basis @ basis.T, expected, atol=0.02 * expected.max())


def test_a_trial_enters_with_a_twentieth_of_its_energy() -> None:
    trial, rule = event(6.0), timing()
    late = rule.times_s(np.arange(60))
    squares = design.trial_regressor(late, 6.0, 2.0, "glover") ** 2
    first = int(np.argmax(np.cumsum(squares) >= 0.05 * squares.sum()))
    for length in (first, first + 1):
        regressors, entered = design.trial_regressors(rule, np.arange(length), [trial], 0.0)
        assert entered.tolist() == [length > first]
        assert regressors.shape == (length, int(length > first))


def test_energy_counts_volumes_that_the_run_may_not_reach() -> None:
    squares = design.trial_regressor(timing().times_s(np.arange(200)), 100.0, 2.0, "glover") ** 2
    assert timing().energy(event(100.0)) == pytest.approx(squares.sum())


def test_lag_shifts_onsets() -> None:
    shifted, _ = design.trial_regressors(timing(), ROWS, [event(30.0)], -3.0)
    np.testing.assert_array_equal(shifted[:, 0], design.trial_regressor(timing().times_s(ROWS), 27.0, 2.0, "glover"))


def test_volume_stands_for_its_middle() -> None:
    assert design.reference_moment(2.0, None) == 1.0
    assert design.reference_moment(2.0, np.array([0.0, 0.9, 0.3])) == pytest.approx(0.45)


def test_motion_is_centred_and_in_millimetres() -> None:
    motion = [np.array([1.0, 2, 3, 0.01, 0.02, 0.03]), np.zeros(6)]
    expected = np.array([[1.0, 2, 3, 0.5, 1.0, 1.5]]) * [[0.5], [-0.5]]
    np.testing.assert_allclose(design.motion_regressors(motion, motion, "6"), expected)
    assert design.motion_regressors(motion, motion, "none").shape == (2, 0)


def test_twenty_four_motion_regressors_span_changes_and_squares() -> None:
    rng = np.random.default_rng(0)
    motion, changes = rng.standard_normal((2, 40, 6))
    scale = np.array([1, 1, 1, 50, 50, 50])
    columns = np.hstack([motion * scale, changes * scale, (motion * scale) ** 2, (changes * scale) ** 2])
    found = design.motion_regressors(list(motion), list(changes), "24")
    np.testing.assert_allclose(found, columns - columns.mean(0), atol=1e-9)


def test_still_motion_is_no_regressor() -> None:
    motion = [np.array([1.0, 0, i, 0, 0, 0]) for i in range(4)]
    assert design.motion_regressors(motion, motion, "6").shape == (4, 1)
