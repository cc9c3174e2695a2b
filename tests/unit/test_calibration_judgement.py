from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calibration import regression
from calibration.judgement import judge
from calibration.targets import make_targets
from tests.decode_small import category_calibrator

GROUPS = (slice(0, 6), slice(6, 16))


@pytest.mark.parametrize("n_voxels", [None, 20])
def test_what_a_trial_showed_has_no_part_in_its_own_scores(n_voxels: int | None) -> None:
    rng = np.random.default_rng(0)
    n = 48
    tokens = rng.standard_normal((n, 4, 4))
    betas = (tokens.reshape(n, 16) @ rng.standard_normal((16, 50)) + rng.standard_normal((n, 50))).astype(np.float32)
    targets = make_targets(tokens, GROUPS)
    k = targets.components.shape[1]
    category, prototypes = rng.integers(3, size=n), rng.standard_normal((3, k))
    groups = np.arange(n)
    parts = regression.folds(groups)
    fold = parts[2]
    told = targets.components.copy()
    told[fold] = rng.standard_normal((len(fold), k))
    named = category.copy()
    named[fold] = (named[fold] + 1) % 3
    stimuli = rng.standard_normal((5, k))
    asked = {"parts": parts, "prototypes": prototypes, "stimuli": stimuli}
    before = judge(betas, targets, groups, n_voxels, category=category, **asked)
    changed = dataclasses.replace(targets, components=told)
    after = judge(betas, changed, groups, n_voxels, category=named, **asked)
    np.testing.assert_array_equal(before.categories[fold], after.categories[fold])
    np.testing.assert_array_equal(before.stimuli[fold], after.stimuli[fold])
    others = np.setdiff1d(np.arange(n), fold)
    assert not np.array_equal(before.stimuli[others], after.stimuli[others])


def test_noise_seldom_passes_for_signal() -> None:
    fits = [category_calibrator(noise=1e3, seed=seed).fit() for seed in range(30)]
    assert np.mean([fit.evidence.signal[0] for fit in fits]) < 0.2
    assert np.mean([fit.figures.category_accuracy for fit in fits]) == pytest.approx(1 / 8, abs=0.05)
    assert np.mean([fit.figures.decoder_percentile for fit in fits]) == pytest.approx(0.5, abs=0.04)
