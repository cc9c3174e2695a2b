from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from calibration.calibrator import Calibrator, write_bundle
from rtdecode.decode.families.tiny.stimulus_tokens import embed_pictures
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError
from rtdecode.estimate.reestimate import CalibrationBetas
from rtdecode.packs import open_participant
from rtdecode.simulate import world
from rtdecode.statistics import mid_ranks
from tests.decode_small import category_beta, category_calibrator, tiny_categories, tiny_pack, tiny_stages


def attributes_of(scene: world.Scene) -> np.ndarray:
    """Describe a scene as numbers that owe nothing to any network; a scrambled picture has neither size nor place."""
    low, high = world.SIZE_RANGE
    shown = scene.category != "scrambled"
    return np.array(
        [
            *(scene.category == name for name in world.CATEGORIES),
            scene.category in ("face", "cat"),
            *(scene.colour == name for name in world.COLOURS),
            shown * (2 * (scene.size - low) / (high - low) - 1),
            shown * scene.x,
            shown * scene.y,
            *(scene.background == name for name in world.BACKGROUNDS),
        ],
        np.float32,
    )


def pictures(n: int, seed: int) -> tuple[Candidates, np.ndarray]:
    """Candidates, and what a brain of another feature space tells of them (n, v)."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng) for _ in range(n)]
    tokens = embed_pictures(tiny_stages(), np.stack([world.render(scene)[0] for scene in scenes]))
    attributes = np.stack([attributes_of(scene) for scene in scenes])
    features = np.tanh(attributes @ rng.standard_normal((attributes.shape[1], 40)))
    betas = features @ rng.standard_normal((40, 120)) + 6 * rng.standard_normal((n, 120))
    category = np.array([world.CATEGORIES.index(scene.category) for scene in scenes])
    names = tuple(f"s{i}" for i in range(n))
    return replace(tiny_categories(), names=names, tokens=tokens, category=category), betas.astype(np.float32)


def again(trials: dict[str, np.ndarray]) -> CalibrationBetas:
    """Betas that were estimated again, without rest."""
    n_voxels = len(next(iter(trials.values())))
    return CalibrationBetas(trials=trials, rest=np.zeros((0, n_voxels), np.float32), rest_run=np.zeros(0, np.int64))


def calibrate(candidates: Candidates, betas: np.ndarray, order: np.ndarray) -> Calibrator:
    calibrator = Calibrator(candidates)
    for i, stimulus in enumerate(order):
        calibrator.add(betas[i], trial=f"t{i}", stimulus=f"s{stimulus}", run=1 + i // 20)
    return calibrator


def test_a_brain_that_tells_is_identified_on_trials_never_seen() -> None:
    candidates, betas = pictures(160, 0)
    calibrator = calibrate(candidates, betas, np.arange(120))
    fit = calibrator.fit()
    assert fit.figures.percentile_p < 0.01
    assert fit.figures.category_p < 0.01
    low, high = fit.figures.percentile_interval
    assert low < fit.figures.percentile < high
    unseen = fit.encoding.describe(candidates.tokens[120:])
    scores = np.stack([fit.encoding.pictures_of(fit.encoding.read(beta), unseen) for beta in betas[120:]])
    ranks = np.diag(mid_ranks(scores))
    assert np.mean(ranks) < 14  # of 40; 20.5 is chance
    new_trials = 1 - (np.mean(ranks) - 1) / 39
    assert fit.figures.percentile == pytest.approx(new_trials, abs=0.06)
    assert fit.figures.decoder_percentile == pytest.approx(new_trials, abs=0.06)


def test_the_learning_curve_rises_with_signal() -> None:
    candidates, betas = pictures(60, 0)
    few, more = (calibrate(candidates, betas, np.arange(n)).status() for n in (12, 60))
    assert few.percentile is not None
    assert more.percentile is not None
    assert 0.5 < few.percentile < more.percentile
    assert more.interval[0] > 0.8
    assert more.p_value == 1 / 1000


def test_shuffled_labels_come_out_at_chance() -> None:
    values = []
    for seed in range(6):
        candidates, betas = pictures(64, seed)
        order = np.random.default_rng(seed).permutation(64)
        fit = calibrate(candidates, betas, order).fit()
        values.append(fit.figures.percentile_p)
        assert fit.figures.percentile_interval[0] <= 0.5
    assert np.median(values) > 0.1


def test_the_learning_curve_is_kept() -> None:
    calibrator = category_calibrator(noise=0.5, runs=3)
    status = calibrator.status()
    assert status.trials == 24
    assert status.percentile is not None
    assert status.percentile > 0.8
    assert status.interval[0] <= status.percentile <= status.interval[1]
    assert calibrator.curve == (status,)


def test_few_trials_have_no_figure_and_no_fit() -> None:
    calibrator = Calibrator(tiny_categories())
    assert calibrator.status().percentile is None
    calibrator.add(np.ones(5, dtype=np.float32), trial="t1", stimulus="cat", run=1)
    assert calibrator.status().percentile is None
    with pytest.raises(CalibrationError, match="at least 8"):
        calibrator.fit()


def test_two_runs_are_left_out_in_turn() -> None:
    fit = category_calibrator(runs=2, noise=0.5).fit()
    assert fit.figures.leave_out == "run"
    assert fit.figures.category_accuracy > 0.8
    assert fit.figures.null_statistics == 0  # both runs would have to be held out together
    assert not fit.can_support


def test_a_single_run_is_held_out_in_blocks_of_time() -> None:
    calibrator = Calibrator(tiny_categories(), leave_out="run")
    rng = np.random.default_rng(0)
    for trial in range(48):
        name = tiny_stages().categories[trial % 8]
        calibrator.add(category_beta(trial % 8, 0.5, rng), trial=f"t{trial}", stimulus=name, run=1)
    fit = calibrator.fit()
    assert fit.figures.category_accuracy > 0.8
    assert fit.evidence.signal[0] == 1


def test_what_cannot_be_used_is_refused_with_its_reason() -> None:
    calibrator = category_calibrator(runs=1)
    with pytest.raises(CalibrationError, match="'dog'"):
        calibrator.add(np.ones(60), trial="t1", stimulus="dog", run=1)
    for add in (
        lambda beta, trial: calibrator.add(beta, trial=trial, stimulus="cat", run=1),
        lambda beta, trial: calibrator.add_null(beta, trial=trial, run=1),
    ):
        with pytest.raises(CalibrationError, match="60 voxels, got 5"):
            add(np.ones(5), "t1")
        with pytest.raises(CalibrationError, match="r1c0: expected a new trial"):
            add(np.ones(60), "r1c0")
        with pytest.raises(CalibrationError, match="t1: expected a beta with an estimate, got none in any voxel"):
            add(np.full(60, np.nan), "t1")
    assert (calibrator.trials, calibrator.null_trials) == (8, 0)
    assert calibrator.known((None, "dog", "cat", "shoe")) == "cat"
    assert calibrator.known((None, "dog")) is None


@pytest.mark.parametrize("leave_out", ["trial", "run"])
def test_one_picture_always_gives_no_decoder(leave_out: Literal["trial", "run"]) -> None:
    calibrator = Calibrator(tiny_categories(), leave_out=leave_out)
    rng = np.random.default_rng(0)
    for trial in range(16):
        calibrator.add(category_beta(0, 1.0, rng), trial=f"t{trial}", stimulus="cat", run=1 + trial // 8)
    assert calibrator.status().percentile is None
    with pytest.raises(CalibrationError, match=r"at least 2 groups|all have the same tokens"):
        calibrator.fit()


def test_voxels_that_tell_nothing_are_left_out() -> None:
    plain, spoilt = category_calibrator(noise=0.5), category_calibrator(noise=0.5)
    betas = {trial: beta.copy() for trial, beta in spoilt._betas.items()}
    for beta in betas.values():
        beta[:3] = 7.0
    betas["r2c3"][3] = np.nan
    betas["r3c1"][4] = np.inf
    spoilt.take_again(again(betas))
    fit = spoilt.fit()
    assert fit.figures.mask_voxels == 60
    assert set(fit.encoding.voxels) == set(range(5, 60))
    assert fit.figures.category_accuracy == pytest.approx(plain.fit().figures.category_accuracy, abs=0.1)
    for beta in betas.values():
        beta[:] = 7.0
    spoilt.take_again(again(betas))
    with pytest.raises(CalibrationError, match="no voxel has an estimate in every calibration trial and varies"):
        spoilt.fit()


def test_better_estimates_take_the_place_of_those_before() -> None:
    calibrator = category_calibrator(noise=0.5)
    calibrator.add_null(np.ones(60, np.float32), trial="n1", run=5)
    wanted = category_calibrator(noise=0.3, seed=9)
    wanted.add_null(np.full(60, 2.0, np.float32), trial="n1", run=5)
    better = {**wanted._betas, **wanted._null_betas, "unheard of": np.ones(60, np.float32)}
    calibrator.take_again(again(better))
    calibrator.take_again(again({"r1c0": np.full(60, np.nan, np.float32)}))
    for name, tensor in wanted.fit().encoding.tensors().items():
        np.testing.assert_array_equal(tensor, calibrator.fit().encoding.tensors()[name])
    with pytest.raises(CalibrationError, match="expected betas of 60 voxels, got 3"):
        calibrator.take_again(again({"r1c1": np.ones(3, np.float32)}))


def test_responses_without_a_picture_pass_as_often_as_promised() -> None:
    """Null trials in a run of their own: p-values of content without a picture are uniform, in noisier runs as well."""
    values: dict[float, list[float]] = {1.0: [], 1.5: []}
    for seed in range(6):
        calibrator = category_calibrator(noise=1.0, seed=seed)
        rng = np.random.default_rng(100 + seed)
        for trial in range(60):
            calibrator.add_null(rng.standard_normal(60).astype(np.float32), trial=f"n{trial}", run=9)
        fit = calibrator.fit()
        betas = rng.standard_normal((60, 60)).astype(np.float32)
        for noise, found in values.items():
            readings = [fit.encoding.read(np.float32(noise) * beta) for beta in betas]
            found += [fit.evidence.p_content(fit.encoding.content_of(reading)) for reading in readings]
    for found in values.values():
        for level in (0.05, 0.25, 0.5, 0.75):
            assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.07)


def test_null_trials_teach_evidence_but_not_the_decoder() -> None:
    plain, with_nulls = category_calibrator(), category_calibrator()
    rng = np.random.default_rng(4)
    for trial in range(24):
        with_nulls.add_null(rng.standard_normal(60).astype(np.float32), trial=f"n{trial}", run=5)
    without, taught = plain.fit(), with_nulls.fit()
    assert (without.figures.null, taught.figures.null) == ("repeats", "null trials")
    assert (taught.figures.null_trials, taught.figures.null_statistics, taught.figures.trials) == (24, 24, 32)
    assert without.can_support
    assert taught.can_support
    for name, tensor in without.encoding.tensors().items():
        if name not in ("near", "noise_range"):  # of evidence: only with null trials it looks wider
            np.testing.assert_array_equal(tensor, taught.encoding.tensors()[name])
    assert (without.encoding.near.tolist(), without.encoding.noise_range.tolist()) == ([0], [1, 1])
    assert taught.encoding.near[0] > 0
    assert 0 < taught.encoding.noise_range[0] < 1 < taught.encoding.noise_range[1]
    for tensor in (*taught.encoding.tensors().values(), *taught.evidence.tensors().values()):
        assert np.isfinite(tensor).all(), "a bundle is refused else"


def test_noise_seldom_passes_for_signal() -> None:
    fits = [category_calibrator(noise=1e3, seed=seed).fit() for seed in range(30)]
    assert np.mean([fit.evidence.signal[0] for fit in fits]) < 0.2
    assert np.mean([fit.figures.category_accuracy for fit in fits]) == pytest.approx(1 / 8, abs=0.05)
    assert np.mean([fit.figures.decoder_percentile for fit in fits]) == pytest.approx(0.5, abs=0.04)


def test_the_same_trials_give_the_same_fit() -> None:
    first, second = (category_calibrator(seed=2).fit() for _ in range(2))
    for name, tensor in first.adapter.tensors().items():
        np.testing.assert_array_equal(tensor, second.adapter.tensors()[name])
    assert first.figures == second.figures


def test_a_bundle_holds_what_was_fitted(tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(b"mask")
    calibrator = category_calibrator()
    calibrator.status()
    fit = calibrator.fit()
    identity = write_bundle(
        tmp_path / "bundle",
        fit,
        pack=tiny_pack(),
        participant="01",
        session="sim-01",
        curve=calibrator.curve,
        left_out=["r1t1: no volumes"],
        copies={"mask.nii.gz": tmp_path / "mask"},
    )
    bundle = open_participant(tmp_path / "bundle")
    assert bundle.identity == identity
    assert (bundle.provenance.pack, bundle.provenance.pack_name) == (tiny_pack().identity, "tiny")
    assert (bundle.provenance.participant, bundle.provenance.session) == ("01", "sim-01")
    assert bundle.provenance.left_out == ["r1t1: no volumes"]
    assert bundle.provenance.trials == 32
    for name, tensor in fit.adapter.tensors().items():
        np.testing.assert_array_equal(bundle.adapter[name], tensor)
    for name, tensor in fit.encoding.tensors().items():
        np.testing.assert_array_equal(bundle.encoding[name], tensor)
    for name, tensor in fit.evidence.tensors().items():
        np.testing.assert_array_equal(bundle.evidence[name], tensor)
    assert (tmp_path / "bundle" / "mask.nii.gz").read_bytes() == b"mask"
    assert json.loads((tmp_path / "bundle" / "learning_curve.json").read_text())[0]["trials"] == 32
