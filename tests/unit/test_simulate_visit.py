from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdecode.simulate import world
from rtdecode.simulate.visit import VisitPlan


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
