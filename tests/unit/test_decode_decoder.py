from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from calibration.calibrator import write_bundle
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates, embed_pictures
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.score.adapter import adapter_from, components_of
from rtdecode.decoded import Caption, Embedding, Reconstruction
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import open_participant
from rtdecode.simulate import world
from tests.decode_small import (
    N_VOXELS,
    category_beta,
    category_calibrator,
    tiny_decoder,
    tiny_pack,
    tiny_stages,
    write_category_bundle,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_category_bundle(folder)
    return folder


def test_the_adapter_is_two_matrix_products(bundle: Path) -> None:
    adapter = adapter_from(open_participant(bundle).adapter)
    beta = category_beta(2, 1.0, np.random.default_rng(0))
    generator = TinyPipeline(tiny_stages())
    generator.take(adapter)
    embedded = generator.embed(adapter.chosen(beta))
    components, tokens = embedded.components, embedded.tokens
    x = (beta[adapter.voxels].astype(np.float64) - adapter.mean) / adapter.scale
    expected = x @ adapter.weights + adapter.intercept
    np.testing.assert_allclose(components, expected, atol=1e-4)
    np.testing.assert_allclose(adapter.predict(adapter.chosen(beta)), expected, atol=1e-4)
    np.testing.assert_allclose(tokens.ravel(), expected @ adapter.basis + adapter.token_mean, atol=1e-4)
    found = components_of(tokens[None], adapter.basis, adapter.token_mean)
    np.testing.assert_allclose(found[0], components, atol=1e-3)


def test_a_voxel_without_an_estimate_counts_as_its_mean(bundle: Path) -> None:
    adapter = adapter_from(open_participant(bundle).adapter)
    beta = category_beta(2, 1.0, np.random.default_rng(0))
    filled = beta.copy()
    filled[adapter.voxels[3]] = adapter.mean[3]
    beta[adapter.voxels[3]] = np.nan
    np.testing.assert_array_equal(adapter.chosen(beta), filled[adapter.voxels])


@pytest.mark.parametrize("size", [5, N_VOXELS - 1, N_VOXELS + 1])
def test_a_beta_of_another_mask_is_refused(bundle: Path, size: int) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    with pytest.raises(EngineError, match=f"the {N_VOXELS} voxels of the calibrated mask, got {size}"):
        decoder.embed(np.zeros(size, dtype=np.float32))


def test_a_beta_that_is_hardly_known_is_refused(bundle: Path) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    voxels = adapter_from(open_participant(bundle).adapter).voxels
    beta = category_beta(2, 1.0, np.random.default_rng(0))
    beta[voxels[: len(voxels) // 2]] = np.nan
    decoder.embed(beta)
    beta[voxels[: len(voxels) // 2 + 1]] = np.inf
    with pytest.raises(EngineError, match=f"at least half of the decoder's {len(voxels)} voxels"):
        decoder.embed(beta)


def test_an_adapter_without_a_tensor_is_refused(bundle: Path) -> None:
    tensors = dict(open_participant(bundle).adapter)
    del tensors["weights"]
    with pytest.raises(BundleError, match="missing weights"):
        adapter_from(tensors)


def test_scores_are_probabilities_and_follow_the_evidence(bundle: Path) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    rng = np.random.default_rng(8)
    for category in range(8):
        score = decoder.embed(category_beta(category, 1.0, rng), (None, tiny_stages().categories[category])).score
        assert sum(score.probabilities.values()) == pytest.approx(1)
        assert max(score.probabilities, key=lambda name: score.probabilities[name]) == score.predicted
        assert score.probabilities[score.predicted] == pytest.approx(score.evidence, abs=1e-3)
        assert score.chance == 1 / 8 <= score.evidence <= 1
        assert score.pool == 8
        assert score.rank is not None
        assert 1 <= score.rank <= 8
        assert all(0 < p <= 1 for p in (score.p_content, score.p_category, score.p_motion))
        assert set(score.plausible) <= set(score.probabilities)
        assert score.null == "repeats"
        assert (score.p_agreement, score.claim) == (None, None)  # calibration showed the pool; the session claims


def test_a_response_far_from_all_of_calibration_is_no_evidence(bundle: Path) -> None:
    decoder = tiny_decoder()
    loaded = open_participant(bundle)
    tensors = dict(loaded.evidence)
    tensors["distances"] = np.linspace(0.5, 9, 200, dtype=np.float32)  # enough to tell 1 % from more
    decoder.load(replace(loaded, evidence=tensors))
    beta = category_beta(1, 0.5, np.random.default_rng(3))
    calm, moved = (decoder.embed(np.float32(factor) * beta).score for factor in (1, 30))
    assert calm.p_motion > 0.01 >= moved.p_motion
    assert calm.plausible
    assert (moved.supported, moved.plausible) == (False, ())


def test_likelihoods_are_those_of_named_candidates(bundle: Path) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    names = tiny_stages().categories
    found = [decoder.likelihood(category_beta(i, 0.3, np.random.default_rng(i)), names).argmax() for i in range(8)]
    assert np.mean(np.array(found) == np.arange(8)) > 0.8
    with pytest.raises(EngineError, match=r"'dog'.*name of a candidate"):
        decoder.likelihood(np.zeros(N_VOXELS, np.float32), ["dog"])


def test_an_unknown_truth_has_no_rank(bundle: Path) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    assert decoder.embed(category_beta(0, 1.0, np.random.default_rng(0)), ("unheard of", None)).score.rank is None


def test_the_picture_and_the_caption_show_the_predicted_category(bundle: Path) -> None:
    decoder = tiny_decoder()
    decoder.load(open_participant(bundle))
    names = tiny_stages().categories
    for category in range(7):
        beta = category_beta(category, 0.5, np.random.default_rng(category))
        embedding, picture, caption = decoder.decode(beta, (), "r01t001")
        assert isinstance(embedding, Embedding)
        assert isinstance(caption, Caption)
        assert isinstance(picture, Reconstruction)
        assert embedding.score.predicted in caption.text
        tokens = embed_pictures(tiny_stages(), picture.image[None])
        assert names[int(tokens[0, 0, :8].argmax())] == embedding.score.predicted


def test_a_token_group_that_is_not_supported_is_left_out_of_picture_and_caption(bundle: Path) -> None:
    """The oracle is a beta whose components of that group are those of the average picture."""
    whole, partial, loaded = tiny_decoder(), tiny_decoder(), open_participant(bundle)
    nulls = np.stack([np.full(59, -1e6), np.full(59, 1e6)]).astype(np.float32)
    supported = {**loaded.evidence, "content_null": nulls[0], "category_null": nulls[0], "group_null": nulls[[0, 0]]}
    whole.load(replace(loaded, evidence=supported))
    partial.load(replace(loaded, evidence={**supported, "group_null": nulls}))
    adapter, semantic = adapter_from(loaded.adapter), tiny_stages().groups[0]
    spatial = ~np.abs(adapter.basis[:, semantic]).any(1)
    assert 0 < spatial.sum() < len(spatial)
    blind = replace(adapter, weights=adapter.weights * ~spatial, intercept=adapter.intercept * ~spatial)
    pipeline = TinyPipeline(tiny_stages())
    pipeline.take(replace(blind, group_r2=adapter.group_r2 * [1, 0]))
    changed = 0
    for category in range(4):
        beta = category_beta(category, 0.5, np.random.default_rng(category))
        (full, first, _), (told, picture, caption) = (list(one.decode(beta, (), "r1t1")) for one in (whole, partial))
        assert isinstance(full, Embedding)
        assert isinstance(told, Embedding)
        assert isinstance(first, Reconstruction)
        assert isinstance(picture, Reconstruction)
        assert isinstance(caption, Caption)
        assert (full.score.unknown, told.score.unknown) == ((), ("spatial",))
        assert told.score.p_groups == {"semantic": 1 / 60, "spatial": 1.0}
        np.testing.assert_array_equal(told.tokens, full.tokens)
        settled = pipeline.settle(pipeline.embed(adapter.chosen(beta)), told.score.predicted, "r1t1")
        assert caption.text == pipeline.caption(settled)
        difference = picture.image.astype(int) - pipeline.picture(settled, "r1t1")
        assert np.abs(difference).max() <= 1  # the products are summed in another order
        changed += not np.array_equal(picture.image, first.image)
        averaged = list(partial.decode(beta, (), "r1t1", average=beta, shown=2))[1]
        assert isinstance(averaged, Reconstruction)
        np.testing.assert_array_equal(averaged.image, first.image)  # of a mean no evidence is stated
    assert changed > 0


def test_of_a_trial_that_is_not_supported_nothing_is_told_apart(bundle: Path) -> None:
    decoder, loaded = tiny_decoder(), open_participant(bundle)
    high = np.full(59, 1e6, np.float32)
    decoder.load(
        replace(loaded, evidence={**loaded.evidence, "content_null": high, "group_null": np.stack([high] * 2)})
    )
    score = decoder.embed(category_beta(1, 0.5, np.random.default_rng(3))).score
    assert (score.supported, score.unknown) == (False, ())
    assert score.p_groups == {"semantic": 1.0, "spatial": 1.0}


def test_calibration_on_shuffled_labels_leaves_evidence_at_chance(tmp_path: Path) -> None:
    fit = category_calibrator(noise=0.5, seed=3, shuffled=True).fit()
    assert fit.figures.category_p > 0.05
    write_bundle(tmp_path / "b", fit, pack=tiny_pack(), participant="01", session="01")
    decoder = tiny_decoder()
    decoder.load(open_participant(tmp_path / "b"))
    for category in range(8):
        score = decoder.embed(category_beta(category, 0.5, np.random.default_rng(category))).score
        assert score.evidence == score.chance
        np.testing.assert_allclose(list(score.probabilities.values()), 1 / 8, atol=1e-4)
        assert not score.supported


def test_pictures_of_a_folder_are_candidates_and_those_of_calibration_leave_the_pool(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pictures = [world.render(world.sample_scene(rng))[0] for _ in range(20)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"s{i:02d}.png")
    candidates = embed_candidates(tiny_stages(), tmp_path)
    assert candidates.names == tuple(f"s{i:02d}" for i in range(20))
    np.testing.assert_allclose(candidates.tokens, embed_pictures(tiny_stages(), np.stack(pictures)), atol=1e-5)
    decoder = tiny_decoder(tmp_path)
    calibrator = category_calibrator()
    fit = calibrator.fit()
    shown = structs.replace(fit.figures, stimuli=[f"s{i:02d}" for i in range(12)])
    write_bundle(tmp_path / "b", replace(fit, figures=shown), pack=tiny_pack(), participant="01", session="01")
    decoder.load(open_participant(tmp_path / "b"))
    score = decoder.embed(category_beta(0, 1.0, rng), ("s15",)).score
    assert score.pool == 8
    assert set(score.top) <= {f"s{i:02d}" for i in range(12, 20)}
    assert score.rank is not None
    wrong = decoder.embed(category_beta(0, 1.0, rng), ("s03",)).score
    assert (wrong.rank, wrong.p_agreement) == (None, None)
    assert score.p_agreement == pytest.approx(score.rank / 8)  # exact: its place among pictures never shown


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "s1.png").write_bytes(b"no picture")
    with pytest.raises(BundleError, match=r"s1\.png: not a readable picture"):
        embed_candidates(tiny_stages(), tmp_path)


def test_the_engines_are_those_that_the_pack_promises() -> None:
    stages = tiny_stages()
    assert all(
        len(getattr(stages, spec.name).inputs) > 0
        for spec in fields(stages)
        if spec.name in ("prior", "unclip", "adapter")
    )
    assert stages.prototypes.shape == (8, 20, 32)
    assert stages.groups == (slice(0, 128), slice(128, 640))
