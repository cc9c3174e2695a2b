"""Trials of an earlier visit beside a few new ones: scales against sums by hand, and what they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calibration.calibrator import Calibrator
from calibration.earlier_visit import EarlierVisit, of_both, only
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError
from rtdecode.statistics import percentile_ranks
from tests.unit.test_calibration_calibrator import pictures

EARLIER, TODAY, TEST = 80, 10, 40


def visit_of(candidates: Candidates, betas: np.ndarray, mask: Path = Path("mask")) -> EarlierVisit:
    """A visit of the first trials, ten without content at its end."""
    calibrator = Calibrator(candidates)
    for i in range(EARLIER):
        calibrator.add(betas[i], trial=f"t{i}", stimulus=f"s{i}", run=1 + i // 20)
    for i, beta in enumerate(np.random.default_rng(1).standard_normal((25, betas.shape[1])).astype(np.float32)):
        calibrator.add_null(beta, trial=f"n{i}", run=9)
    trials = calibrator.taken()
    shown, places = only(candidates, trials.shown)
    return EarlierVisit(session="01", mask=mask, candidates=shown, trials=replace(trials, shown=places))


def today(candidates: Candidates, betas: np.ndarray, earlier: EarlierVisit | None, n: int = TODAY) -> Calibrator:
    calibrator = Calibrator(candidates, earlier=earlier)
    for i in range(EARLIER, EARLIER + n):
        calibrator.add(betas[i], trial=f"t{i}", stimulus=f"s{i}", run=1)
    return calibrator


@pytest.fixture(scope="module")
def world() -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Pictures, and what a brain tells of them at the earlier visit and today, at other levels and strengths."""
    candidates, betas = pictures(EARLIER + TODAY + TEST, 0)
    rng = np.random.default_rng(2)
    n_voxels = betas.shape[1]
    moved = (betas * rng.uniform(0.5, 1.5, n_voxels) + 8 * rng.standard_normal(n_voxels)).astype(np.float32)
    return candidates, betas, moved


def test_mean_and_scale_are_between_those_of_both_visits(world: tuple[Candidates, np.ndarray, np.ndarray]) -> None:
    candidates, betas, moved = world
    trials = today(candidates, moved, visit_of(candidates, betas)).taken()
    assert (trials.earlier, trials.earlier_session) == (EARLIER, "01")
    for voxel in range(0, betas.shape[1], 17):
        then, now = betas[:EARLIER, voxel].astype(float), moved[EARLIER : EARLIER + TODAY, voxel].astype(float)
        mean = then.mean() + TODAY / (TODAY + 10) * (now.mean() - then.mean())
        variance = (20 * then.var() + ((now - now.mean()) ** 2).sum()) / (20 + TODAY - 1)
        expected = mean + (then - then.mean()) * np.sqrt(variance / then.var())
        np.testing.assert_allclose(trials.betas[:EARLIER, voxel], expected, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(trials.betas[EARLIER:], moved[EARLIER : EARLIER + TODAY])


def test_what_later_responses_are_compared_with_doubts_todays_mean(
    world: tuple[Candidates, np.ndarray, np.ndarray],
) -> None:
    candidates, betas, moved = world
    earlier = visit_of(candidates, betas)
    now = moved[EARLIER : EARLIER + TODAY]
    many = replace(earlier, trials=replace(earlier.trials, null_betas=np.zeros((4000, betas.shape[1]), np.float32)))
    nulls = today(candidates, moved, many).taken().null_betas
    assert len(nulls) == 4000
    expected = (TODAY / (TODAY + 10)) ** 2 * now.var(0) / TODAY  # of a mean of ten trials, drawn with replacement
    np.testing.assert_allclose(nulls.var(0), expected, rtol=0.15)


def test_runs_and_folds_of_both_visits_stay_apart(world: tuple[Candidates, np.ndarray, np.ndarray]) -> None:
    candidates, betas, moved = world
    trials = today(candidates, moved, visit_of(candidates, betas)).taken()
    assert set(trials.run[:EARLIER]).isdisjoint(trials.run[EARLIER:])
    assert set(trials.null_run).isdisjoint(trials.run)
    assert sorted(np.concatenate(trials.parts)) == list(range(EARLIER + TODAY))
    assert [candidates.names[i] for i in trials.shown] == [f"s{i}" for i in range(EARLIER + TODAY)]


def test_ten_trials_keep_the_decoder_and_follow_the_participant(
    world: tuple[Candidates, np.ndarray, np.ndarray],
) -> None:
    candidates, betas, moved = world
    earlier = visit_of(candidates, betas)
    first = Calibrator(candidates)
    for i in range(EARLIER):
        first.add(betas[i], trial=f"t{i}", stimulus=f"s{i}", run=1)
    ranks = {}
    for name, fit in (
        ("as it is", first.fit()),
        ("alone", today(candidates, moved, None).fit()),
        ("both", today(candidates, moved, earlier).fit()),
    ):
        test = fit.encoding.describe(candidates.tokens[-TEST:])
        scores = np.stack([fit.encoding.pictures_of(fit.encoding.read(beta), test) for beta in moved[-TEST:]])
        ranks[name] = float(np.diagonal(percentile_ranks(scores)).mean())
        if name == "both":
            assert (fit.figures.trials, fit.figures.earlier_trials) == (EARLIER + TODAY, EARLIER)
            assert fit.figures.null == "null trials"
            assert fit.can_support
    assert ranks["both"] > max(ranks["as it is"], ranks["alone"], 0.6)


def test_only_trials_of_today_are_judged_by_the_curve(world: tuple[Candidates, np.ndarray, np.ndarray]) -> None:
    candidates, betas, moved = world
    earlier = visit_of(candidates, betas)
    told = today(candidates, moved, earlier).status()
    assert told.trials == TODAY
    assert told.percentile is not None
    assert told.percentile > 0.6
    noise = np.random.default_rng(3).standard_normal(moved.shape).astype(np.float32)
    chance = [today(candidates, noise + shift, earlier).status().percentile for shift in range(6)]
    assert np.mean([value for value in chance if value is not None]) == pytest.approx(0.5, abs=0.15)


def test_pictures_that_were_shown_then_too_are_not_learned_from_to_be_judged(
    world: tuple[Candidates, np.ndarray, np.ndarray],
) -> None:
    """A brain that answers to each picture at random, and the same way again, can be recognised and not decoded."""
    candidates, _, _ = world
    rng = np.random.default_rng(4)
    own = rng.standard_normal((EARLIER, 120)).astype(np.float32)
    earlier = visit_of(candidates, own)
    found = []
    for first in range(0, 40, 10):
        calibrator = Calibrator(candidates, earlier=earlier)
        for i in range(first, first + TODAY):
            calibrator.add(own[i], trial=f"t{i}", stimulus=f"s{i}", run=1)
        found.append(calibrator.status().percentile)
    assert np.mean([value for value in found if value is not None]) == pytest.approx(0.5, abs=0.15)


def test_another_picture_of_the_same_name_keeps_apart(world: tuple[Candidates, np.ndarray, np.ndarray]) -> None:
    candidates, betas, moved = world
    earlier = visit_of(candidates, betas)
    present = replace(candidates, tokens=candidates.tokens[::-1].copy(), category=candidates.category[::-1].copy())
    both, places = of_both(present, earlier)
    assert both.names[: len(candidates.names)] == candidates.names
    assert [both.names[i] for i in places[:2]] == ["s0 of session 01", "s1 of session 01"]
    np.testing.assert_array_equal(both.tokens[places], earlier.candidates.tokens)
    assert of_both(both, earlier)[0].names == both.names
    trials = today(present, moved, earlier).taken()
    np.testing.assert_array_equal(both.tokens[trials.shown[:EARLIER]], earlier.candidates.tokens[earlier.trials.shown])


def test_other_categories_and_other_voxels_are_refused(
    world: tuple[Candidates, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    candidates, betas, _ = world
    then, now = np.zeros((2, 4, 4, 2), np.uint8)
    then[:2], now[1:3] = 1, 1
    for name, data in (("then", then), ("now", now)):
        nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}.nii")
    earlier = visit_of(candidates, betas, tmp_path / "then.nii")
    earlier.check(tmp_path / "then.nii")
    with pytest.raises(CalibrationError, match=r"expected the 16 voxels of .* 01, got 16 that are not"):
        earlier.check(tmp_path / "now.nii")
    with pytest.raises(CalibrationError, match="expected a mask"):
        earlier.check(tmp_path / "none.nii")
    with pytest.raises(CalibrationError, match="expected the categories of the earlier session"):
        of_both(replace(candidates, categories=("a", "b")), earlier)
