"""A participant who regulates learns from feedback that is about their brain, and from no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rtdecode import client as wire
from rtdecode.blinding.allocation import Seal, allocate
from rtdecode.estimate import Estimator
from rtdecode.protocol_file import ShamPlan
from rtdecode.records import RegisteredVolume, Stamp, Volume
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.blind import Blind
from rtdecode.session.feedback import Feedback
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.acquisition import NoiseParameters
from rtdecode.simulate.participant import HRF_STEP_S, Participant, hrf_library
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.regulation import Regulator
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock
from tests.regulating import BLOCK, EVERY, FIRST, T_R_S, plan_of, regulating

PROTOCOL = Protocol(shape=(20, 20, 8), voxel_mm=(10.5, 10.5, 15.0), t_r_s=T_R_S)
STILL = NoiseParameters(spikes=0, motion_walk_mm=0.0, between_runs_mm=0.0)
FED = FeedbackSettings(score="region", regions=("visual",), baseline_volumes=6, bounds=(-1.0, 3.0), deadline_s=60.0)
RUNS, BLOCKS = 3, 4
KEY = bytes(range(32))

log = logging.getLogger(__name__)


def test_a_try_after_which_more_was_shown_is_kept() -> None:
    """By hand: the first try sets what is expected, later ones move the skill by 0.6 of what they exceed it by."""
    learner = Regulator(1, np.ones(1), skill=0.3, spread=0.3, rate=0.6)
    learner.see(0.9)  # before the first try there is nothing to learn from
    first = learner.attempt()
    learner.see(0.2)
    learner.see(0.4)
    second = learner.attempt()
    assert sorted([first, second]) == pytest.approx([0.0, 0.6])
    learner.see(0.5)  # .2 more than the .3 expected
    learner.attempt()
    assert learner.skill == pytest.approx(0.3 + (0.12 if second > first else -0.12))


def test_who_is_shown_nothing_learns_nothing() -> None:
    learner = Regulator(2, np.ones(1))
    for _ in range(10):
        learner.attempt()
        learner.watch(wire.Feedback(state="held", level=1.0))
        learner.watch(wire.Feedback(state="baseline"))
    assert learner.skill == 0.3
    assert np.mean(learner.tries) == pytest.approx(0.3), "of two tries one is stronger and one weaker"


def test_a_try_adds_its_response_to_the_volumes_that_follow(tmp_path: Path) -> None:
    """The difference of two scans that differ in strength alone is the convolved block, and nothing before it."""
    plan = plan_of(3, runs=1, blocks=1)
    scans = []
    for skill in (0.0, 1.0):
        participant, _ = regulating(3, PROTOCOL, 40, tmp_path / "region.nii.gz")
        learner = Regulator(3, participant.mean, skill=skill, spread=0.0)
        scanner = Scanner(plan, participant, tmp_path, FakeClock(), noise=STILL, regulator=learner)
        scans.append([volume[tuple(participant.voxels.T)].mean() for volume in scanner.volumes(1)])
    difference = np.diff(np.array(scans), axis=0)[0]
    drive = np.zeros(round(plan.volumes_per_run * T_R_S / HRF_STEP_S))
    drive[round(FIRST * T_R_S / HRF_STEP_S) : round((FIRST + BLOCK) * T_R_S / HRF_STEP_S)] = 1.0
    expected = np.convolve(drive, hrf_library()[4])[: len(drive) : round(T_R_S / HRF_STEP_S)]
    assert np.abs(difference[: FIRST + 1]).max() < 0.1 * difference.max()
    assert np.corrcoef(difference, expected)[0, 1] > 0.98


def regulated(seed: int, seal: Seal, region: Path) -> tuple[Regulator, float]:
    """Scan a participant of a blinded study; return them, and by how much their response grew from first to last run.

    Percent signal change of the region while they try, which neither participant nor operator is told.
    """
    participant, learner = regulating(seed, PROTOCOL, 40, region)
    plan = plan_of(seed, RUNS, BLOCKS)
    scanner = Scanner(plan, participant, region.parent, FakeClock(), noise=STILL, regulator=learner)
    estimator = Estimator(EstimateSettings(regions={"visual": region}, registration="off"), "s")
    blind = Blind(seal, KEY, ShamPlan(kind="random_walk"), f"s{seed}", T_R_S, lambda place, envelope: None)
    follower = Feedback(FED, blind)
    tried = [FIRST + EVERY * block + late for block in range(BLOCKS) for late in range(4, BLOCK + 2)]
    means = []
    for run in range(1, RUNS + 1):
        estimator.start_run(run, None)
        signal = []
        for registered in acquired(scanner, participant, plan, run, estimator):
            learner.watch(follower.add(registered, took_s=0.0))
            signal.append(registered.regions["visual"])
        estimator.finish_run()
        means.append(float(np.nanmean(np.array(signal)[tried])))
    return learner, means[-1] - means[0]


def acquired(
    scanner: Scanner, participant: Participant, plan: VisitPlan, run: int, estimator: Estimator
) -> Iterator[RegisteredVolume]:
    protocol = participant.protocol
    for index, data in enumerate(scanner.volumes(run)):
        stamp = Stamp(session="s", run=run, volume=index, received_s=0.0, received_mono_s=0.0)
        volume = Volume(
            stamp=stamp, data=data, affine=protocol.affine, t_r_s=plan.t_r_s, slice_times_s=protocol.slice_times_s,
            series_uid=str(run), instance=index + 1, path=f"{index}.dcm",
        )  # fmt: skip
        yield estimator.step(volume)[0]


def test_real_feedback_is_learned_from_and_sham_is_not(tmp_path: Path) -> None:
    """20 participants, half of them shown a sham, as `rtdecode protocol allocate` draws it."""
    seals = allocate("protocol", [f"{number:02d}" for number in range(20)], KEY)
    skill: dict[str, list[float]] = {"real": [], "sham": []}
    grown: dict[str, list[float]] = {"real": [], "sham": []}
    for seed, seal in enumerate(seals):
        learner, growth = regulated(seed, seal, tmp_path / "region.nii.gz")
        skill[seal.arm(KEY)].append(learner.skill - 0.3)
        grown[seal.arm(KEY)].append(growth)
    assert {arm: len(of) for arm, of in grown.items()} == {"real": 10, "sham": 10}
    for what, gain in (("skill", skill), ("percent signal change", grown)):
        intervals = {arm: stats.ttest_1samp(of, 0.0).confidence_interval(0.95) for arm, of in gain.items()}
        between = stats.ttest_ind(gain["real"], gain["sham"], equal_var=False).confidence_interval(0.95)
        told = {arm: (round(float(np.mean(of)), 2), np.round(intervals[arm], 2)) for arm, of in gain.items()}
        log.info("%s: %s, difference %s", what, told, np.round(between, 2))
        assert intervals["real"].low > 0, what
        assert intervals["sham"].low < 0 < intervals["sham"].high, what
        assert between.low > 0, what
