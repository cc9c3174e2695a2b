from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrator import Calibrator, write_bundle
from rtdecode.decode.families.tiny.stimulus_tokens import embed_pictures
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError
from rtdecode.packs import open_participant
from rtdecode.simulate import world
from rtdecode.statistics import mid_ranks
from tests.decode_small import category_calibrator, tiny_categories, tiny_pack, tiny_stages


def pictures(n: int, seed: int) -> tuple[Candidates, np.ndarray]:
    """Candidates, and what a brain of another feature space tells of them (n, v)."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng) for _ in range(n)]
    tokens = embed_pictures(tiny_stages(), np.stack([world.render(scene)[0] for scene in scenes]))
    attributes = np.stack([world.semantic_attributes(scene) for scene in scenes])
    features = np.tanh(attributes @ rng.standard_normal((attributes.shape[1], 40)))
    betas = features @ rng.standard_normal((40, 120)) + 6 * rng.standard_normal((n, 120))
    category = np.array([world.CATEGORIES.index(scene.category) for scene in scenes])
    names = tuple(f"s{i}" for i in range(n))
    return replace(tiny_categories(), names=names, tokens=tokens, category=category), betas.astype(np.float32)


def calibrate(candidates: Candidates, betas: np.ndarray, order: np.ndarray) -> Calibrator:
    calibrator = Calibrator(candidates)
    for i, stimulus in enumerate(order):
        calibrator.add(betas[i], stimulus=f"s{stimulus}", run=1 + i // 20)
    return calibrator


def test_a_brain_that_tells_is_identified_on_trials_never_seen() -> None:
    candidates, betas = pictures(160, 0)
    calibrator = calibrate(candidates, betas, np.arange(120))
    fit = calibrator.fit()
    assert fit.figures.percentile_p < 0.01
    assert fit.figures.category_p < 0.01
    low, high = fit.figures.percentile_interval
    assert low < fit.figures.percentile < high
    adapter = fit.adapter
    new = betas[120:][:, adapter.voxels]
    components = (new - adapter.mean) / adapter.scale @ adapter.weights + adapter.intercept
    scores = fit.scorer.candidates(components, adapter.project(candidates.tokens[120:]))
    ranks = np.diag(mid_ranks(scores))
    assert np.mean(ranks) < 14  # of 40; 20.5 is chance
    new_trials = 1 - (np.mean(ranks) - 1) / 39
    assert fit.figures.percentile == pytest.approx(new_trials, abs=0.04)
    assert fit.figures.decoder_percentile == pytest.approx(new_trials, abs=0.04)


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
    calibrator.add(np.ones(5, dtype=np.float32), stimulus="cat", run=1)
    assert calibrator.status().percentile is None
    with pytest.raises(CalibrationError, match="at least 8"):
        calibrator.fit()


def test_one_run_cannot_be_left_out() -> None:
    with pytest.raises(CalibrationError, match="at least 3 groups"):
        category_calibrator(runs=1).fit()


def test_unknown_stimuli_and_other_masks_are_refused() -> None:
    calibrator = category_calibrator(runs=1)
    with pytest.raises(CalibrationError, match="'dog'"):
        calibrator.add(np.ones(60), stimulus="dog", run=1)
    with pytest.raises(CalibrationError, match="60 voxels, got 5"):
        calibrator.add(np.ones(5), stimulus="cat", run=1)
    assert calibrator.known((None, "dog", "cat", "shoe")) == "cat"
    assert calibrator.known((None, "dog")) is None


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
    for name, tensor in fit.scorer.tensors().items():
        np.testing.assert_array_equal(bundle.evidence[name], tensor)
    assert (tmp_path / "bundle" / "mask.nii.gz").read_bytes() == b"mask"
    assert json.loads((tmp_path / "bundle" / "learning_curve.json").read_text())[0]["trials"] == 32
