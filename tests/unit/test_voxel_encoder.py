"""Which picture fits a response: against scipy, and with voxels that select apart from those that judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from calibration.voxel_encoder_fit import fit_voxel_encoder, write_voxel_encoder
from rtdecode.decode.score.voxel_encoder import VoxelEncoder, agreements, identify, open_voxel_encoder, score_candidates
from rtdecode.errors import BundleError, CalibrationError, EngineError

N, V, M = 160, 400, 24


class World:
    """Voxels that answer linearly to tokens, half of them to nothing."""

    def __init__(self, noise: float = 2.0) -> None:
        rng = np.random.default_rng(0)
        self.maps = rng.standard_normal((M, V)) / np.sqrt(M)
        self.maps[:, V // 2 :] = 0
        self.noise = noise

    def trials(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        tokens = rng.standard_normal((n, 4, M // 4))
        betas = 3 + tokens.reshape(n, -1) @ self.maps + self.noise * rng.standard_normal((n, V))
        return tokens.astype(np.float32), betas.astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> tuple[World, VoxelEncoder]:
    world = World()
    tokens, betas = world.trials(N, 1)
    return world, fit_voxel_encoder(betas, [f"p{i}" for i in range(N)], tokens)


def test_held_out_correlations_tell_voxels_that_answer(fitted: tuple[World, VoxelEncoder]) -> None:
    _, encoder = fitted
    assert encoder.held_out[encoder.voxels < V // 2].mean() > 0.25
    silent = encoder.held_out[encoder.voxels >= V // 2]
    assert -0.1 < silent.mean() < 0.02  # below 0: where folds disagree by chance, predictions are small, r is not


def test_held_out_correlations_are_those_of_new_pictures(fitted: tuple[World, VoxelEncoder]) -> None:
    world, encoder = fitted
    tokens, betas = world.trials(600, 2)
    predicted, measured = encoder.predict(tokens), encoder.standardized(betas)
    fresh = np.array([pearsonr(a, b)[0] for a, b in zip(predicted.T, measured.T, strict=True)])
    answering = encoder.voxels < V // 2
    assert np.mean(fresh[answering]) == pytest.approx(np.mean(encoder.held_out[answering]), abs=0.06)


def test_repeats_of_a_picture_are_never_on_both_sides() -> None:
    world = World(noise=0.0)
    rng = np.random.default_rng(3)
    tokens = rng.standard_normal((20, 4, M // 4)).astype(np.float32)
    own = rng.standard_normal((20, V)).astype(np.float32)  # of each picture, and of nothing in its tokens
    order = np.repeat(np.arange(20), 4)
    betas = own[order] + 0.01 * rng.standard_normal((80, V)).astype(np.float32)
    encoder = fit_voxel_encoder(betas, [f"p{i}" for i in order], tokens[order])
    assert world.noise == 0.0
    assert encoder.held_out.mean() < 0.1


def test_the_agreement_is_the_correlation_over_the_voxels_that_select(fitted: tuple[World, VoxelEncoder]) -> None:
    world, encoder = fitted
    tokens, betas = world.trials(8, 4)
    predicted = encoder.predict(tokens)
    region = encoder.voxels < 100
    found = score_candidates(encoder, betas[3], predicted, decoys=predicted[4:], regions={"V1": region})
    response = encoder.standardized(betas[3])
    for name, members in (("all", encoder.selects), ("V1", encoder.selects & region)):
        expected = [pearsonr(one[members], response[members])[0] for one in predicted]
        np.testing.assert_allclose(found.agreement[name], expected, atol=1e-6)
    best = found.agreement["all"]
    assert found.chosen == int(np.argmax(best)) == 3
    assert found.margin == pytest.approx(np.sort(best)[-1] - np.sort(best)[-2])
    judges = ~encoder.selects
    assert found.judged["all"] == pytest.approx(pearsonr(predicted[3][judges], response[judges])[0], abs=1e-6)


def test_voxels_that_select_do_not_judge_and_the_other_way_round(fitted: tuple[World, VoxelEncoder]) -> None:
    world, encoder = fitted
    tokens, betas = world.trials(6, 5)
    predicted = encoder.predict(tokens)
    before = score_candidates(encoder, betas[0], predicted)
    changed = betas[0].copy()
    changed[encoder.voxels[~encoder.selects]] = np.random.default_rng(0).standard_normal((~encoder.selects).sum())
    after = score_candidates(encoder, changed, predicted)
    np.testing.assert_array_equal(before.agreement["all"], after.agreement["all"])
    assert before.judged["all"] != after.judged["all"]
    changed = betas[0].copy()
    changed[encoder.voxels[encoder.selects]] *= -1
    third = score_candidates(replace(encoder), changed, predicted[before.chosen : before.chosen + 1])
    assert third.judged["all"] == pytest.approx(before.judged["all"])


def test_a_choice_by_noise_is_not_rewarded_by_the_judge() -> None:
    """Best of 8 pictures by noise alone: the voxels that select agree, those that judge do not."""
    world = World()
    tokens, betas = world.trials(N, 1)
    encoder = fit_voxel_encoder(betas, [f"p{i}" for i in range(N)], tokens)
    rng = np.random.default_rng(7)
    chosen, judged = [], []
    for _ in range(200):
        candidates = encoder.predict(rng.standard_normal((8, 4, M // 4)).astype(np.float32))
        noise = 3 + rng.standard_normal(V).astype(np.float32)
        found = score_candidates(encoder, noise, candidates)
        chosen.append(found.agreement["all"].max())
        judged.append(found.judged["all"])
    assert np.mean(chosen) > 0.05
    assert abs(np.mean(judged)) < 3 * np.std(judged) / np.sqrt(len(judged))


def test_the_decoys_null_is_uniform_where_nothing_was_shown(fitted: tuple[World, VoxelEncoder]) -> None:
    _, encoder = fitted
    rng = np.random.default_rng(8)
    found = []
    for _ in range(300):
        pictures = encoder.predict(rng.standard_normal((108, 4, M // 4)).astype(np.float32))
        noise = 3 + rng.standard_normal(V).astype(np.float32)
        found.append(score_candidates(encoder, noise, pictures[:8], decoys=pictures[8:]).p_decoy)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_identification_ranks_the_own_picture_among_all(fitted: tuple[World, VoxelEncoder]) -> None:
    world, encoder = fitted
    tokens, betas = world.trials(40, 9)
    predicted, responses = encoder.predict(tokens), encoder.standardized(betas)
    places = identify(predicted, responses)
    naive = []
    for i, response in enumerate(responses):
        found = np.array([pearsonr(one, response)[0] for one in predicted])
        naive.append(1 + (found > found[i]).sum())
    np.testing.assert_array_equal(places, naive)
    assert (places == 1).mean() > 0.5


def test_an_encoder_is_sealed_and_read_again(fitted: tuple[World, VoxelEncoder], tmp_path: Path) -> None:
    _, encoder = fitted
    write_voxel_encoder(tmp_path / "encoder", encoder, {"pack": "tiny"})
    again = open_voxel_encoder(tmp_path / "encoder")
    for name, value in encoder.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], value)
    (tmp_path / "encoder" / "encoder.json").write_text("{}")
    with pytest.raises(BundleError, match="content differs"):
        open_voxel_encoder(tmp_path / "encoder")


def test_what_cannot_be_fitted_or_compared_is_refused(fitted: tuple[World, VoxelEncoder]) -> None:
    _, encoder = fitted
    with pytest.raises(CalibrationError, match="expected 10 different pictures or more, got 3"):
        fit_voxel_encoder(np.zeros((6, 4), np.float32), ["a", "b", "c"] * 2, np.zeros((6, 4)))
    with pytest.raises(CalibrationError, match="expected voxels with an estimate in every trial"):
        fit_voxel_encoder(np.zeros((12, 4), np.float32), [str(i) for i in range(12)], np.zeros((12, 4)))
    with pytest.raises(EngineError, match="expected one candidate picture at least"):
        score_candidates(encoder, np.zeros(V, np.float32), np.zeros((0, len(encoder.voxels)), np.float32))
    with pytest.raises(EngineError, match="expected an estimate in at least half"):
        score_candidates(encoder, np.full(V, np.nan, np.float32), np.zeros((1, len(encoder.voxels)), np.float32))


def test_a_constant_prediction_agrees_with_nothing() -> None:
    np.testing.assert_array_equal(agreements(np.ones((2, 20)), np.arange(20.0)), [0, 0])
