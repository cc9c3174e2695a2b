"""Betas of the calibration runs, estimated again by what these have taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtdecode.errors import BundleError
from rtdecode.estimate import Estimator
from rtdecode.estimate.calibrated import Calibrated
from rtdecode.estimate.reestimate import CalibrationBetas, open_betas, save_betas
from tests.unit.test_estimate_estimator import OFF, event, play, volume


def calibrated_by(estimator: Estimator, *, without: int) -> Calibrated:
    """Return what an estimator learned, but for what a run of its own taught of the mean response."""
    assert estimator.learned is not None
    expectation = estimator.learned.expectation
    expectation = replace(expectation, mean_response=estimator._prior.mean_response(without=without))
    space = estimator.space
    return Calibrated(
        reference=space.data,
        affine=space.affine,
        mask=space.mask,
        learned=replace(estimator.learned, expectation=expectation),
        settings={},
    )


@pytest.mark.parametrize("on_disk", [True, False])
def test_they_are_what_an_estimator_that_knew_it_all_before_would_have_said(tmp_path: Path, on_disk: bool) -> None:
    estimator = Estimator(OFF, "s", calibration_runs=2, scratch=tmp_path if on_disk else None)
    first = {u.event.trial: u.beta for run in (1, 2, 3) for u in play(estimator, run=run) if u.final}
    found = estimator.reestimated()
    assert found is not None
    again = found.trials
    expected = {}
    for run in (1, 2):
        knowing = Estimator(OFF, "s", calibrated=calibrated_by(estimator, without=run))
        expected |= {u.event.trial: u.beta for u in play(knowing, run=run) if u.final}
    assert again.keys() == expected.keys()  # run 3 is no calibration run
    for trial, beta in expected.items():
        np.testing.assert_allclose(again[trial], beta, rtol=0, atol=1e-5)
    assert max(np.abs(again[trial] - first[trial]).max() for trial in again) > 0.01  # the first were of another kind


def test_a_volume_that_was_lost_or_left_out_is_not_looked_at() -> None:
    def scan(estimator: Estimator) -> dict[str, np.ndarray]:
        estimator.start_run(1, 2.0)
        for onset_s in (4.0, 20.0, 36.0):
            estimator.add_event(event(onset_s))
        updates = []
        for index in range(30):
            if index in (8, 9):  # one is when the first trial would have become final
                estimator.skip(1, index)
            else:
                updates += estimator.step(volume(index))[1]
        return {u.event.trial: u.beta for u in updates + estimator.finish_run() if u.final}

    estimator = Estimator(OFF, "s", calibration_runs=1)
    scan(estimator)
    expected = scan(Estimator(OFF, "s", calibrated=calibrated_by(estimator, without=1)))
    found = estimator.reestimated()
    assert found is not None
    again = found.trials
    assert again.keys() == expected.keys()
    for trial, beta in expected.items():
        np.testing.assert_allclose(again[trial], beta, rtol=0, atol=1e-5)


def test_there_are_none_before_a_run_has_taught_anything() -> None:
    estimator = Estimator(OFF, "s", calibration_runs=2)
    assert estimator.reestimated() is None


def test_rest_between_trials_is_estimated_as_if_it_were_a_trial() -> None:
    estimator = Estimator(OFF, "s", calibration_runs=2)
    play(estimator, run=1, onsets_s=(4.0, 20.0, 36.0))
    play(estimator, run=2, onsets_s=(4.0, 8.0, 12.0))  # no pause holds rest
    found = estimator.reestimated()
    assert found is not None
    assert found.rest_run.tolist() == [1, 1]  # before the second and the third trial, 2 s each
    knowing = Estimator(OFF, "s", calibrated=calibrated_by(estimator, without=1))
    expected = {u.event.trial: u.beta for u in play(knowing, onsets_s=(4.0, 18.0, 20.0, 36.0)) if u.final}
    np.testing.assert_allclose(found.rest[0], expected["1/18.0"], rtol=0, atol=1e-5)


def test_they_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    trials = {"a": np.array([1.0, np.nan], np.float32), "b": np.array([2.0, 3.0], np.float32)}
    rest, rest_run = np.array([[4.0, 5.0]], np.float32), np.array([3])
    for kept in (trials, {}):
        save_betas(tmp_path / "betas", CalibrationBetas(trials=kept, rest=rest, rest_run=rest_run))
        found = open_betas(tmp_path / "betas")
        assert list(found.trials) == list(kept)
        for trial in kept:
            np.testing.assert_array_equal(found.trials[trial], kept[trial])
        np.testing.assert_array_equal(found.rest, rest)
        np.testing.assert_array_equal(found.rest_run, rest_run)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "betas").write_bytes(b"not it")
    with pytest.raises(BundleError, match="betas of the calibration runs"):
        open_betas(tmp_path / "betas")


def test_what_is_expected_of_a_run_is_frozen_at_the_end_of_calibration() -> None:
    estimator = Estimator(OFF, "s", calibration_runs=2)
    for run in (1, 2):
        play(estimator, run=run)
    frozen = estimator.learned
    assert frozen is not None
    play(estimator, run=3)
    assert estimator.learned is not None
    assert estimator.learned.expectation is not frozen.expectation
    assert estimator.learned.expectation.scales == frozen.expectation.scales
    learning = Estimator(OFF, "s")
    for run in (1, 2, 3):
        play(learning, run=run)
    assert learning.learned is not None
    assert learning.learned.expectation.scales != frozen.expectation.scales
