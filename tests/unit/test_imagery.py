"""Imagery: the read-out against plain arithmetic, the protocol's file, and what the simulated participant imagines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdecode.errors import SettingsError
from rtdecode.imagery.protocol import ImageryProtocol, read_protocol
from rtdecode.imagery.read_out import CalibrationScale, ImageryEpoch, ImageryReadOut, read_all
from rtdecode.simulate import world
from rtdecode.simulate.features import EARLY, FRONT, picture_features
from rtdecode.simulate.imagery_visit import CATCH, CUE, TARGETS, ImageryPlan
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.seeds import generator
from tests.unit.simulate_small import PROTOCOL

NAMES = ("a", "b", "c")
VOXELS = np.array([1, 3, 4, 6])
PATTERNS = np.random.default_rng(1).standard_normal((len(NAMES), 8))


def likelihood(beta: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float64]:
    patterns = PATTERNS[[NAMES.index(name) for name in names]]
    return -0.5 * np.square(beta[VOXELS] - patterns[:, VOXELS]).sum(1).astype(np.float64)


def readout(**fields: Any) -> ImageryReadOut:
    protocol = ImageryProtocol(targets={"A": "a", "B": "b", "C": "c"}, warm_up=4, **fields)
    rng = np.random.default_rng(2)
    scale = CalibrationScale(
        voxels=VOXELS,
        centre=rng.standard_normal(4).astype(np.float32),
        scale=rng.uniform(0.5, 2, 4).astype(np.float32),
    )
    return ImageryReadOut(protocol, likelihood, scale)


def epochs(n: int = 20) -> list[ImageryEpoch]:
    rng = np.random.default_rng(3)
    names = [*(NAMES[i % 3] for i in range(n - 3)), "catch", "catch", "a"]
    return [
        ImageryEpoch(trial=f"t{i}", target=name, beta=rng.standard_normal(8).astype(np.float32) * 2 + 5, vividness=0.5)
        for i, name in enumerate(names)
    ]


def test_one_epoch_at_a_time_gives_what_all_at_once_give() -> None:
    """The oracle: statistics of the first four, then means over all earlier epochs of the same target."""
    given, read = epochs(), readout()
    scale = read._scale
    every = np.stack([one.beta for one in given]).astype(np.float64)
    first = every[:4, VOXELS]
    brought = every.copy()
    brought[:, VOXELS] = (every[:, VOXELS] - first.mean(0)) / first.std(0, ddof=1) * scale.scale + scale.centre
    found = {one.trial: one for one in read_all(read, given)}
    assert list(found) == [one.trial for one in given[3:] if one.target in NAMES]
    for i, one in enumerate(given):
        if one.trial not in found:
            continue
        earlier = [brought[j] for j in range(i + 1) if given[j].target == one.target]
        scores = likelihood(np.mean(earlier, 0), NAMES)
        said = found[one.trial]
        assert said.repeats == len(earlier)
        assert said.predicted == NAMES[int(np.argmax(scores))]
        assert said.rank == 1 + np.sum(scores > scores[NAMES.index(one.target)])
        assert said.alone == NAMES[int(np.argmax(likelihood(brought[i], NAMES)))]
        assert said.vividness == 0.5
    last = found[given[-1].trial]
    leads = [np.ptp([s.max(), s.mean()]) for s in (likelihood(brought[i], NAMES) for i in (-3, -2, -1))]
    assert last.p_catch == pytest.approx((1 + sum(lead >= leads[2] for lead in leads[:2])) / 3)
    assert found[given[4].trial].p_catch is None


def test_too_few_repeats_are_not_told() -> None:
    said = read_all(readout(least_repeats=3), epochs())
    assert min(one.repeats for one in said) == 3


def test_another_mean_and_spread_of_the_task_change_nothing() -> None:
    moved = [ImageryEpoch(trial=one.trial, target=one.target, beta=3 * one.beta - np.float32(2)) for one in epochs()]
    for plain, other in zip(read_all(readout(), epochs()), read_all(readout(), moved), strict=True):
        assert (plain.predicted, plain.alone, plain.rank) == (other.predicted, other.alone, other.rank)


def test_a_voxel_without_an_estimate_counts_as_its_mean() -> None:
    given = epochs()
    given[-1].beta[VOXELS[0]] = np.nan
    said = read_all(readout(), given)[-1]
    assert said.trial == given[-1].trial
    assert said.rank >= 1


def test_the_protocol_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "imagery.toml"
    path.write_text('warm_up = 6\n[targets]\nA = "house"\nB = "face"\n')
    found = read_protocol(path)
    assert (found.names, found.warm_up, found.cue) == (("house", "face"), 6, "cue")
    path.write_text('[targets]\nA = "house"\n')
    with pytest.raises(SettingsError, match="expected at least two, got 1"):
        read_protocol(path)
    path.write_text('wurm_up = 6\n[targets]\nA = "house"\n')
    with pytest.raises(SettingsError, match="wurm_up"):
        read_protocol(path)


def test_imagery_is_weaker_and_spares_what_is_high_level() -> None:
    participant = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60))
    scenes = [world.sample_scene(generator(1, "scenes", i)) for i in range(12)]
    features = picture_features(scenes)
    seen = participant.responses(scenes)
    imagined = participant.responses(scenes, ["imagery"] * len(scenes))
    assert np.abs(imagined).mean() < 0.6 * np.abs(seen).mean()
    weights = participant.weights
    spread = {name: np.std(features[:, stage] @ weights[stage]) for name, stage in (("early", EARLY), ("front", FRONT))}
    parts = imagined - participant.responses([None], ["imagery"])
    expected = 0.1 * features[:, EARLY] @ weights[EARLY] + 0.6 * features[:, FRONT] @ weights[FRONT]
    middle = slice(EARLY.stop, FRONT.start)
    np.testing.assert_allclose(parts, expected + 0.3 * features[:, middle] @ weights[middle])
    assert spread["early"] > 0
    cue = participant.responses([None], ["cue"])
    np.testing.assert_allclose(cue[0], 0.3 * participant.mean)


def test_a_plan_cues_each_target_as_often_and_announces_the_epoch_apart(tmp_path: Path) -> None:
    plan = ImageryPlan(seed=4, calibration_runs=1, decoding_runs=2)
    imagined = [trial for trial in plan.trials if trial.run > 1]
    cues, given = imagined[::2], imagined[1::2]
    assert all(cue.condition == CUE and cue.kind == "cue" for cue in cues)
    for cue, epoch in zip(cues, given, strict=True):
        assert epoch.onset_s == cue.onset_s + cue.duration_s
        assert epoch.kind == "imagery"
    counts = {name: sum(one.stimulus == name for one in given) for name in (*plan.targets, CATCH)}
    assert counts == {**dict.fromkeys(plan.targets, 6), CATCH: 4}
    assert len({scene.category for scene in plan.targets.values()}) == TARGETS
    plan.write_stimuli(tmp_path)
    shown = {trial.stimulus for trial in plan.trials if trial.run == 1}
    assert {path.stem for path in tmp_path.glob("*.png")} == shown | set(plan.targets)
    shuffled = ImageryPlan(seed=4, calibration_runs=1, decoding_runs=2, shuffle_labels=True)
    told = [trial.stimulus for trial in shuffled.trials if trial.kind == "imagery"]
    true = [trial.stimulus for trial in given]
    assert np.mean([a == b for a, b in zip(told, true, strict=True) if b != CATCH]) < 0.5
    with pytest.raises(ValueError, match="expected runs of at least"):
        ImageryPlan(seed=4, repeats_per_run=9)
