"""What simulated participants imagine is named above chance, and nothing is when the cues are shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from calibration.calibrator import Calibrator
from rtdecode.decode.loading import load_candidates
from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.imagery.read_out import CalibrationScale, Identified, ImageryEpoch, ImageryReadOut, read_all
from rtdecode.packs import open_pack
from rtdecode.simulate.imagery_visit import TARGETS, ImageryPlan
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.statistics import wilson_interval
from tests.unit.simulate_small import PROTOCOL

MEASUREMENT = 6.0
"""Standard deviation of what estimation adds to a beta, percent signal change: about that of the demo."""


Said = list[Identified]


def said_of(seed: int, folder: Path) -> tuple[Said, Said]:
    """What is said of a participant's epochs by the cues, and by shuffled ones."""
    plan, shuffled = (
        ImageryPlan(seed=seed, calibration_runs=2, decoding_runs=4, shuffle_labels=labels) for labels in (False, True)
    )
    plan.write_stimuli(folder)
    candidates = load_candidates(open_pack("tiny-imagery"), folder)
    person, trials = make_participant(seed, PROTOCOL, ResponseParameters(n_responsive=400)), plan.trials
    evoked = person.responses([t.scene for t in trials], [t.kind for t in trials])
    betas = np.empty_like(evoked)
    for run in range(1, plan.runs + 1):
        rows = [i for i, trial in enumerate(trials) if trial.run == run]
        betas[rows] = person.trials(evoked[rows], run, [trials[i].kind for i in rows])
    betas += MEASUREMENT * np.random.default_rng(seed).standard_normal(betas.shape)
    betas = betas.astype(np.float32)
    calibrator = Calibrator(candidates, seed=seed)
    for trial, beta in zip(trials, betas, strict=True):
        if trial.run <= plan.calibration_runs:
            calibrator.add(beta, trial=trial.trial, stimulus=trial.stimulus, run=trial.run)
    encoding = calibrator.fit().encoding

    def likelihood(beta: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float64]:
        rows = np.array([candidates.index(name) for name in names])
        return encoding.pictures_of(encoding.read(beta), encoding.describe(candidates.tokens[rows]))

    def read(told: ImageryPlan) -> list[Identified]:
        protocol = ImageryProtocol(targets={name: name for name in plan.targets})
        scale = CalibrationScale(voxels=encoding.voxels, centre=encoding.centre, scale=encoding.scale)
        epochs = [
            ImageryEpoch(trial=trial.trial, target=trial.stimulus, beta=beta)
            for trial, beta in zip(told.trials, betas, strict=True)
            if trial.kind == "imagery"
        ]
        return read_all(ImageryReadOut(protocol, likelihood, scale), epochs)

    return read(plan), read(shuffled)


@pytest.fixture(scope="module", params=[1, 2, 3])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, Said]:
    return said_of(request.param, tmp_path_factory.mktemp("stimuli"))


def test_the_cued_target_is_named_above_chance(said: tuple[Said, Said]) -> None:
    hits = [one.alone == one.target for one in said[0]]
    assert len(hits) >= 60
    assert wilson_interval(sum(hits), len(hits))[0] > 1 / TARGETS
    last = {one.target: one for one in said[0]}
    assert np.mean([one.predicted == one.target for one in last.values()]) > np.mean(hits)  # repeats help


def test_shuffled_cues_are_at_chance(said: tuple[Said, Said]) -> None:
    hits = [one.alone == one.target for one in said[1]]
    assert binomtest(sum(hits), len(hits), 1 / TARGETS).pvalue > 0.005
    assert np.mean(hits) < np.mean([one.alone == one.target for one in said[0]])
