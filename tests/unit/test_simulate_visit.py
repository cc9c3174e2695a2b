from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdecode.simulate import world
from rtdecode.simulate.visit import PROTOCOLS, Stratum, VisitPlan
from rtdecode.stimuli import pictures_in


def test_the_default_visit_is_large_enough_and_balanced() -> None:
    plan = VisitPlan(seed=11)
    calibration = [trial for trial in plan.trials if trial.run <= plan.calibration_runs]
    assert len(calibration) >= 200
    assert len(plan.trials) - len(calibration) >= 60
    for run in range(1, plan.runs + 1):
        counts = Counter(trial.condition for trial in plan.of_run(run))
        assert set(counts) == set(world.CATEGORIES)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_picture_is_shown_twice() -> None:
    plan = VisitPlan(seed=11)
    assert len({trial.stimulus for trial in plan.trials}) == len(plan.trials)
    assert len({trial.trial for trial in plan.trials}) == len(plan.trials)
    assert len({trial.scene for trial in plan.trials}) == len(plan.trials)


def test_trials_fit_the_run_and_do_not_overlap() -> None:
    plan = VisitPlan(seed=2)
    for run in range(1, plan.runs + 1):
        onsets = [trial.onset_s for trial in plan.of_run(run)]
        assert onsets == sorted(onsets)
        assert min(np.diff(onsets)) >= plan.trial_s
        assert onsets[-1] + plan.trial_s <= plan.volumes_per_run * plan.t_r_s


def test_a_seed_is_a_visit() -> None:
    assert VisitPlan(seed=4) == VisitPlan(seed=4)
    assert VisitPlan(seed=4).trials != VisitPlan(seed=5).trials


def test_shuffled_labels_change_what_is_announced_and_nothing_else() -> None:
    plain, shuffled = VisitPlan(seed=4), VisitPlan(seed=4, shuffle_labels=True)
    assert [trial.scene for trial in plain.trials] == [trial.scene for trial in shuffled.trials]
    assert sorted(t.stimulus for t in plain.trials) == sorted(t.stimulus for t in shuffled.trials)
    moved = sum(a.stimulus != b.stimulus for a, b in zip(plain.trials, shuffled.trials, strict=True))
    assert moved > 0.95 * len(plain.trials)
    named = {trial.stimulus: trial.condition for trial in plain.trials}
    assert all(named[trial.stimulus] == trial.condition for trial in shuffled.trials)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stimulus_file_shows_the_picture_of_that_name(tmp_path: Path, shuffle: bool) -> None:
    plan = VisitPlan(seed=4, calibration_runs=1, decoding_runs=0, trials_per_run=5, shuffle_labels=shuffle)
    plan.write_stimuli(tmp_path / "stimuli")
    named = {
        trial.stimulus: trial.scene
        for trial in VisitPlan(seed=4, calibration_runs=1, decoding_runs=0, trials_per_run=5).trials
    }
    assert {path.stem for path in (tmp_path / "stimuli").iterdir()} == set(named)
    for stimulus, scene in named.items():
        with Image.open(tmp_path / "stimuli" / f"{stimulus}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), world.render(scene)[0])


def test_a_run_too_short_for_its_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 163 s"):
        VisitPlan(volumes_per_run=100)


def test_pictures_without_content_are_spread_over_the_calibration() -> None:
    plan = VisitPlan(seed=3, null_trials_per_run=8)
    for run in range(1, plan.runs + 1):
        null = [trial for trial in plan.of_run(run) if trial.kind == "null"]
        assert len(null) == (8 if run <= plan.calibration_runs else 0)
        assert all((t.stimulus, t.condition, t.scene) == ("null", "null", None) for t in null)
        assert len(plan.of_run(run)) == plan.trials_per_run
        counts = Counter(trial.condition for trial in plan.of_run(run) if trial.kind == "picture")
        assert max(counts.values()) - min(counts.values()) <= 1
    at = [sum(trial.onset_s for trial in plan.of_run(run) if trial.kind == "null") for run in (1, 2, 3)]
    assert len(set(at)) == 3
    assert {t.kind for t in VisitPlan(seed=3).trials} == {"picture"}


def test_null_trials_stay_where_labels_are_shuffled() -> None:
    plain, shuffled = (VisitPlan(seed=3, null_trials_per_run=5, shuffle_labels=s) for s in (False, True))
    assert [t.kind for t in plain.trials] == [t.kind for t in shuffled.trials]
    assert all((t.stimulus == "null") == (t.kind == "null") for t in shuffled.trials)
    assert sorted(t.stimulus for t in plain.trials) == sorted(t.stimulus for t in shuffled.trials)


def test_repeated_pictures_are_shown_twice_in_different_runs() -> None:
    plan = VisitPlan(seed=6, repeats=40)
    runs: dict[str, list[int]] = {}
    for trial in plan.trials:
        runs.setdefault(trial.stimulus, []).append(trial.run)
    twice = [of for of in runs.values() if len(of) > 1]
    assert len(twice) == 40
    assert all(len(of) == len(set(of)) == 2 and max(of) <= plan.calibration_runs for of in twice)
    assert len({(t.stimulus, t.scene) for t in plan.trials}) == len(runs) == len(plan.trials) - 40
    for run in range(1, plan.runs + 1):
        counts = Counter(trial.condition for trial in plan.of_run(run))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_more_repeats_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most \d+ repeats in this calibration, got 5"):
        VisitPlan(calibration_runs=2, trials_per_run=4, repeats=5)


def test_strata_change_what_happens_and_not_what_is_announced() -> None:
    kinds = [Stratum(), Stratum(kind="null"), Stratum(kind="blank"), Stratum(kind="half"), Stratum(kind="lapsed")]
    strata = (*kinds, Stratum(spike=True), Stratum(kind="null", spike=True), Stratum(wrong=True))
    plan = VisitPlan(seed=2, calibration_runs=1, decoding_runs=len(strata), strata=strata)
    plain = VisitPlan(seed=2, calibration_runs=1, decoding_runs=len(strata))
    for run, stratum in enumerate((Stratum(), *strata), start=1):
        trials, usual = plan.of_run(run), plain.of_run(run)
        assert {(t.kind, t.spike) for t in trials} == {(stratum.kind, stratum.spike)}
        seen = [None] * len(trials) if stratum.kind in ("null", "blank") else [t.scene for t in usual]
        assert [t.scene for t in trials] == seen
        same = [a.stimulus == b.stimulus for a, b in zip(trials, usual, strict=True)]
        assert not any(same) if stratum.wrong else all(same)
        assert sorted(t.stimulus for t in trials) == sorted(t.stimulus for t in usual)
    named = {trial.stimulus: trial.condition for trial in plain.trials}
    assert all(trial.condition == named[trial.stimulus] for trial in plan.trials)


def test_strata_for_some_of_the_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="a stratum for each of 2 runs, got 1"):
        VisitPlan(strata=(Stratum(),))
    with pytest.raises(ValueError, match="fewer trials without content than the 40"):
        VisitPlan(null_trials_per_run=40)


@pytest.mark.parametrize("minutes", PROTOCOLS)
def test_a_protocol_takes_its_minutes(minutes: int) -> None:
    plan = VisitPlan(seed=7).lasting(minutes)
    assert plan.seed == 7
    taken = plan.calibration_runs * plan.volumes_per_run * plan.t_r_s / 60
    assert 0.95 * minutes <= taken <= minutes


def test_a_picture_without_content_is_written_apart_from_what_may_be_decoded(tmp_path: Path) -> None:
    plan = VisitPlan(seed=4, calibration_runs=1, decoding_runs=0, trials_per_run=5, null_trials_per_run=2)
    plan.write_stimuli(tmp_path)
    assert set(pictures_in(tmp_path)) == {t.stimulus for t in plan.trials} - {"null"}
    with Image.open(tmp_path / "null" / "null.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (world.PICTURE_PX, world.PICTURE_PX, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert pixels.std() > 20
