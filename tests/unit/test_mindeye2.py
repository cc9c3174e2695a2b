"""A cut-down MindEye2 pack end to end: every stage, the same picture twice, absent stages, bad betas."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.compile.plan_building import build_plans, export_pack
from engines.importing.fake import write_fake_mindeye2
from engines.importing.mindeye2_files import MindEye2Files, draft_mindeye2
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.mindeye2 import load_mindeye2
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.mindeye2_stages import MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import MindEye2Decoded, Recipe, recipe_of
from rtdecode.decode.families.mindeye2.torch_stages import load_stages
from rtdecode.decode.networks.backbone import BackboneShape
from rtdecode.decode.resample import bilinear
from rtdecode.decode.runtime.backends import Backend, choose
from rtdecode.decode.runtime.tensorrt import TensorRT
from rtdecode.errors import EngineError
from rtdecode.packs import open_pack
from tests.fake_tensorrt import Library, install
from tests.packs import description
from tests.published import mindeye2_state, random_state, save_last, stripped
from tests.thin_networks import thin_mindeye2

SIZES = mindeye2_sizes("small")
VOXELS = SIZES["ridge"][1]["voxels"][0]
QUICK = Recipe(prior_steps=4, unclip_steps=3, refine_steps=4, refine_timepoint=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "small"
    write_fake_mindeye2(path, dims="small", stages=list(SIZES))
    return path


@pytest.fixture(scope="module")
def stages(folder: Path) -> MindEye2Stages:
    return load_stages(open_pack(str(folder)))


@pytest.fixture(scope="module")
def betas() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((3, VOXELS)).astype(np.float32)


@pytest.fixture(scope="module")
def decoded(stages: MindEye2Stages, betas: np.ndarray[Any, Any]) -> MindEye2Decoded:
    return MindEye2(stages, QUICK).decode(betas[0], seed=7)


def pictures(decoded: MindEye2Decoded) -> dict[str, np.ndarray[Any, Any]]:
    found = {name: getattr(decoded, name) for name in ("picture", "blurry", "refined", "blended")}
    return {name: picture for name, picture in found.items() if picture is not None}


def test_the_base_path_does_not_load_torch() -> None:
    family = "rtdecode.decode.families.mindeye2"
    names = f"{family}.mindeye2_decoder, rtdecode.decode.sampling.edm, rtdecode.evaluate.metrics, engines.cli"
    code = f"import sys, {names}; print(sorted({{'torch', 'diffusers', 'transformers'}} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_stage_gives_its_shape_and_finite_values(decoded: MindEye2Decoded) -> None:
    assert decoded.absent == ()
    assert decoded.tokens.shape == (16, 104)
    assert isinstance(decoded.caption, str)
    shapes = {name: picture.shape for name, picture in pictures(decoded).items()}
    assert shapes == {
        "picture": (3, 64, 64),
        "blurry": (3, 224, 224),
        "refined": (3, 64, 64),
        "blended": (3, 256, 256),
    }
    assert np.isfinite(decoded.tokens).all()
    for picture in pictures(decoded).values():
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.std() > 0


def test_equal_betas_and_seed_give_the_same_pictures_and_others_do_not(
    folder: Path, stages: MindEye2Stages, betas: np.ndarray[Any, Any], decoded: MindEye2Decoded
) -> None:
    again = load_mindeye2(open_pack(str(folder)), recipe=QUICK).decode(betas[0], seed=7)
    assert again.caption == decoded.caption
    np.testing.assert_array_equal(again.tokens, decoded.tokens)
    for name, picture in pictures(decoded).items():
        np.testing.assert_array_equal(getattr(again, name), picture)
    mind = MindEye2(stages, QUICK)
    assert not np.array_equal(mind.decode(betas[0], seed=8).picture, decoded.picture)
    assert not np.array_equal(mind.decode(betas[1], seed=7).picture, decoded.picture)


def test_noise_of_a_stage_does_not_depend_on_the_others(
    stages: MindEye2Stages, betas: np.ndarray[Any, Any], decoded: MindEye2Decoded
) -> None:
    fewer = MindEye2(replace(stages, blurry=None, caption=None, refiner=None, embed=None), QUICK)
    alone = fewer.decode(betas[0], seed=7)
    np.testing.assert_array_equal(alone.picture, decoded.picture)
    assert alone.absent == ("caption", "blurry", "refined")
    assert (alone.caption, alone.blurry, alone.refined, alone.blended) == (None, None, None, None)


@pytest.mark.parametrize(
    ("left_out", "absent"),
    [
        ({"captioner"}, ("caption", "refined")),
        ({"converter", "refiner"}, ("caption", "refined")),
        ({"blurry_autoencoder", "prompt"}, ("blurry", "refined")),
        ({"unclip"}, ("picture", "refined")),
        (set(SIZES) - {"ridge", "backbone", "prior"}, ("caption", "picture", "blurry", "refined")),
    ],
)
def test_an_absent_stage_is_named_and_the_rest_runs(
    tmp_path: Path, betas: np.ndarray[Any, Any], decoded: MindEye2Decoded, left_out: set[str], absent: tuple[str, ...]
) -> None:
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=[name for name in SIZES if name not in left_out])
    mind = load_mindeye2(open_pack(str(tmp_path / "p")), recipe=QUICK)
    assert mind.absent == absent
    out = mind.decode(betas[0], seed=7)
    assert out.absent == absent
    np.testing.assert_array_equal(out.tokens, decoded.tokens)
    for name in ("caption", "picture", "blurry", "refined"):
        assert (getattr(out, name) is None) == (name in absent)


def test_a_model_without_a_low_level_branch_has_no_blurry_picture(tmp_path: Path, betas: np.ndarray[Any, Any]) -> None:
    shape = BackboneShape(**{**SIZES["backbone"][1], "low_level": False, "blocks": 4})
    weights = save_last(tmp_path / "last.pth", mindeye2_state(voxels=[VOXELS], shape=shape))
    torch.save(stripped(random_state("autoencoder", SIZES["blurry_autoencoder"][1]), "vae."), tmp_path / "vae.pth")
    draft = draft_mindeye2(MindEye2Files(weights=str(weights), blurry_autoencoder=str(tmp_path / "vae.pth")))
    draft.seal(tmp_path / "p", name="p", licence="none", precision="float32")
    out = load_mindeye2(open_pack(str(tmp_path / "p")), recipe=QUICK).decode(betas[0], seed=7)
    assert out.absent == ("caption", "picture", "blurry", "refined")
    assert out.blurry is None


def test_a_pack_without_a_needed_stage_is_refused(tmp_path: Path) -> None:
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=["ridge", "backbone"])
    with pytest.raises(EngineError, match="missing stages prior"):
        load_mindeye2(open_pack(str(tmp_path / "p")))


def test_a_pack_of_another_kind_is_refused() -> None:
    with pytest.raises(EngineError, match="expected kind 'mindeye2'"):
        load_mindeye2(open_pack("tiny"))


def test_an_unknown_participant_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="participant from 0 to 0, got 3"):
        load_mindeye2(open_pack(str(folder)), participant=3)


def test_betas_of_another_mask_or_not_finite_are_refused(stages: MindEye2Stages, betas: np.ndarray[Any, Any]) -> None:
    mind = MindEye2(stages, QUICK)
    with pytest.raises(EngineError, match=f"expected betas of {VOXELS} voxels"):
        mind.embed(betas[0, :-1])
    with pytest.raises(EngineError, match="expected betas"):
        mind.embed(betas[:0])
    spoiled = betas.copy()
    spoiled[1, 3:5] = np.nan
    spoiled[2, 0] = np.inf
    with pytest.raises(EngineError, match=f"3 of {spoiled.size} values"):
        mind.embed(spoiled)


def test_repeats_are_averaged_behind_the_backbone(stages: MindEye2Stages, betas: np.ndarray[Any, Any]) -> None:
    mind = MindEye2(stages, QUICK)
    together = mind.embed(betas)
    alone = [mind.embed(beta) for beta in betas]
    for name in ("tokens", "retrieval", "latent"):
        mean = torch.stack([getattr(one, name) for one in alone]).mean(0)
        torch.testing.assert_close(getattr(together, name), mean, rtol=0, atol=1e-5)
    # The projector is not linear: averaging betas instead gives another answer.
    other = mind.embed(betas.mean(0))
    assert not torch.allclose(other.retrieval, together.retrieval, atol=1e-3)


def test_a_ridge_fitted_in_the_visit_takes_the_place_of_the_packs(
    stages: MindEye2Stages, betas: np.ndarray[Any, Any]
) -> None:
    mind = MindEye2(stages, QUICK)
    before = mind.embed(betas[0])
    weight, bias = stages.ridge
    mind.take_ridge(weight[:, :40], bias)
    with pytest.raises(EngineError, match="expected betas of 40 voxels"):
        mind.embed(betas[0])
    mind.take_ridge(weight[:, ::-1], bias)
    torch.testing.assert_close(mind.embed(betas[0, ::-1]).tokens, before.tokens, rtol=0, atol=1e-5)
    with pytest.raises(EngineError, match="fitted for another pack"):
        mind.take_ridge(weight[:-1], bias[:-1])


def test_the_picture_is_blended_three_to_one_or_as_set(stages: MindEye2Stages, decoded: MindEye2Decoded) -> None:
    assert decoded.refined is not None
    assert decoded.blurry is not None
    refined, blurry = bilinear(decoded.refined, 256), bilinear(decoded.blurry, 256)
    np.testing.assert_allclose(decoded.blended, 0.75 * refined + 0.25 * blurry, rtol=0, atol=1e-6)
    fifth = MindEye2(stages, replace(QUICK, blend=(4.0, 1.0))).blend(decoded.refined, decoded.blurry)
    np.testing.assert_allclose(fifth, 0.8 * refined + 0.2 * blurry, rtol=0, atol=1e-6)


def test_retrieval_is_the_cosine_over_all_tokens(stages: MindEye2Stages, decoded: MindEye2Decoded) -> None:
    mind = MindEye2(stages, QUICK)
    own = stages.host(decoded.hidden.retrieval)[0]
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((20, *own.shape)).astype(np.float32)
    pool[13] = 3 * own + 0.1 * pool[13]
    got = mind.similarities(decoded.hidden, pool)
    want = torch.nn.functional.cosine_similarity(
        torch.from_numpy(pool).flatten(1), torch.from_numpy(own).flatten()[None]
    )
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5)
    assert np.argmax(got) == 13


def test_the_best_of_several_pictures_is_the_likeliest(
    stages: MindEye2Stages, betas: np.ndarray[Any, Any], decoded: MindEye2Decoded
) -> None:
    embedded: list[float] = []
    own = stages.host(decoded.hidden.retrieval).ravel()

    def spy(picture: Any) -> Any:
        assert stages.embed is not None
        out = stages.embed(picture)
        flat = stages.host(out).ravel()
        embedded.append(float(flat @ own / np.linalg.norm(flat) / np.linalg.norm(own)))
        return out

    mind = MindEye2(replace(stages, embed=spy), replace(QUICK, best_of=3))
    tokens = stages.array(decoded.tokens[None])
    chosen = mind.picture(decoded.hidden, tokens, seed=7)
    assert len(embedded) == 3
    first = MindEye2(stages, QUICK).picture(decoded.hidden, tokens, seed=7)
    assert np.array_equal(chosen, first) == (int(np.argmax(embedded)) == 0)
    with pytest.raises(EngineError, match="needs the embedder"):
        MindEye2(replace(stages, embed=None), replace(QUICK, best_of=2))


def test_the_small_autoencoder_draws_where_the_pack_has_one(
    folder: Path, stages: MindEye2Stages, decoded: MindEye2Decoded
) -> None:
    assert recipe_of(open_pack(str(folder)).described(MindEye2Description)) == Recipe(small_autoencoder=True)
    recipe = replace(QUICK, small_autoencoder=True)
    latents: list[Any] = []

    def spy(latent: Any) -> Any:
        assert stages.small_picture is not None
        latents.append(latent)
        return stages.small_picture(latent)

    picture = MindEye2(replace(stages, small_picture=spy), recipe).picture(
        decoded.hidden, stages.array(decoded.tokens[None]), seed=7
    )
    assert picture is not None
    assert decoded.picture is not None
    assert picture.shape == decoded.picture.shape
    assert stages.small_picture is not None
    shown = stages.host(stages.small_picture(latents[0]))[0]
    np.testing.assert_array_equal(picture, np.clip(shown * 0.8 + 0.2, 0, 1))
    fewer = replace(stages, small_picture=None)
    with pytest.raises(EngineError, match="import one with --small-autoencoder"):
        MindEye2(fewer, recipe)
    assert "picture" not in MindEye2(fewer, QUICK).absent


def test_the_published_number_of_steps_runs(stages: MindEye2Stages, decoded: MindEye2Decoded) -> None:
    calls: list[int] = []

    def counted(values: Any) -> Any:
        assert len(values["x"]) == 2  # with and without condition
        calls.append(int(values["t"][0]))
        return {"noise": torch.zeros_like(values["x"])}

    assert stages.unclip is not None
    mind = MindEye2(replace(stages, unclip=replace(stages.unclip, step_part=counted)))
    assert mind.recipe.unclip_guidance == 5.0
    assert mind.picture(decoded.hidden, stages.array(decoded.tokens[None]), seed=0) is not None
    assert len(calls) == 38
    assert calls[:3] == [999, 972, 946]


def test_half_precision_stays_finite_and_near(
    tmp_path: Path, betas: np.ndarray[Any, Any], decoded: MindEye2Decoded
) -> None:
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=list(SIZES), precision="bfloat16")
    backend = Backend(name="torch", device="cpu", precision="bfloat16", reason="")
    half = load_mindeye2(open_pack(str(tmp_path / "p")), backend=backend, recipe=QUICK).decode(betas[0], seed=7)
    spread = decoded.tokens.std()
    assert np.abs(half.tokens - decoded.tokens).mean() < 0.1 * spread
    for name, picture in pictures(decoded).items():
        assert np.isfinite(getattr(half, name)).all(), name
        assert np.abs(getattr(half, name) - picture).mean() < 0.1


def test_onnx_runtime_and_plans_make_the_picture_of_torch(
    tmp_path: Path, betas: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [name for name in SIZES if name not in ("embedder", "refiner", "refiner_autoencoder", "prompt")]
    weights = thin_mindeye2(tmp_path / "weights", wanted)
    recipe = replace(QUICK, prior_guidance=2.0)
    expected = load_mindeye2(weights, recipe=recipe).decode(betas[0], seed=7)
    export_pack(weights, tmp_path / "exported", precision="float32", report=lambda _: None)
    exported = open_pack(str(tmp_path / "exported"))

    def same(backend: Backend) -> None:
        found = load_mindeye2(exported, backend=backend, recipe=recipe).decode(betas[0], seed=7)
        assert found.absent == expected.absent == ("refined",)
        assert found.caption == expected.caption
        np.testing.assert_allclose(found.tokens, expected.tokens, rtol=0, atol=1e-4 * np.abs(expected.tokens).max())
        for name, picture in pictures(expected).items():
            np.testing.assert_allclose(getattr(found, name), picture, rtol=0, atol=1e-3)

    backend = choose("onnx", exported)
    assert (backend.name, backend.reason) == ("onnx", "asked for")
    same(backend)
    install(monkeypatch, Library())
    build_plans(exported, TensorRT(), flags=(), report=lambda _: None)
    backend = choose("auto", exported)
    assert (backend.name, backend.reason) == ("tensorrt", "a GPU was found, and the pack holds plans")
    same(backend)


def test_the_choice_of_a_backend_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, tiny = open_pack(str(folder)), open_pack("tiny")
    assert choose("auto", tiny).reason == "the pack holds ONNX files"
    assert choose("auto", weights).reason == "the pack holds no ONNX files; no GPU, so this is slow"
    with pytest.raises(EngineError, match="expected exported parts, got none: rtdecode engines export"):
        choose("onnx", weights)
    with pytest.raises(EngineError, match="got ONNX files only"):
        choose("torch", tiny)
    with pytest.raises(EngineError, match="weights of networks for tensorrt, got ONNX files only"):
        choose("tensorrt", tiny)
    with pytest.raises(EngineError, match="expected plans, got none: rtdecode engines build"):
        choose("tensorrt", weights)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = choose("auto", weights)
    assert (chosen.device, chosen.precision, chosen.reason) == ("cuda", "float16", "a GPU was found")


def test_a_distilled_pack_is_decoded_in_two_steps(stages: MindEye2Stages, decoded: MindEye2Decoded) -> None:
    student = DistilledTable(teacher="x", guidance_baked_in=5.0, steps=1, skip=1, seed=0)
    recipe = recipe_of(description(distilled={"prior": student, "unclip": student}))
    assert (recipe.unclip_steps, recipe.unclip_guidance) == (2, 1.0)
    assert (recipe.prior_sampler, recipe.unclip_sampler) == ("consistency", "consistency")
    assert recipe_of(description()) == Recipe()
    assert recipe_of(description(prior_sampler="other")) == Recipe(prior_sampler="other")
    levels: list[int] = []
    sizes: list[int] = []

    def prior(x: Any, t: int, condition: Any, guidance: float) -> Any:
        levels.append(t)
        return condition + t

    def step(values: Any) -> Any:
        sizes.append(len(values["x"]))
        return {"noise": torch.zeros_like(values["x"])}

    assert stages.unclip is not None
    mind = MindEye2(replace(stages, prior=prior, unclip=replace(stages.unclip, step_part=step)), recipe)
    tokens = mind.clean(decoded.hidden, seed=0)
    assert levels == [99, 49]
    torch.testing.assert_close(tokens, decoded.hidden.tokens + 49)  # the last call's answer
    assert mind.picture(decoded.hidden, tokens, seed=0) is not None
    assert sizes == [1, 1]  # no unconditional side
