"""A cut-down MindEye1 pack from its published files to tokens and a blurry picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from engines.compile.plan_building import build_plans, export_pack
from engines.importing.diffusion_files import SD_SCALE, autoencoder_config
from engines.importing.mindeye1_files import MindEye1Files, draft_mindeye1
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.families.mindeye1 import load_mindeye1
from rtdecode.decode.families.mindeye1.mindeye1_decoder import MindEye1
from rtdecode.decode.families.mindeye2 import load_mindeye2
from rtdecode.decode.networks.build import load
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.runtime.runner import tensor_runner
from rtdecode.decode.runtime.tensorrt import TensorRT
from rtdecode.decode.score.pool import ImagePool
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.packs.description import StageTable
from tests.fake_tensorrt import Library, install
from tests.golden import LOOP, close, goldens, numbered
from tests.packs import description
from tests.published import mindeye1_state, random_state, save_last, stripped
from tests.unit.test_golden_prior import draws_of, predictor, prior_of

VOXELS, TOKENS, DIM = 40, 16, 104
PRIOR = {**mindeye2_sizes("small")["prior"][1], "tokens": TOKENS, "dim": DIM, "timesteps": 12}
BRAIN = {"voxels": VOXELS, "hidden": 32, "tokens": TOKENS, "dim": DIM, "projector": 24, "blocks": 2}
LOW_LEVEL = {"voxels": VOXELS, "hidden": 32, "blocks": 2, "aligned": True}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    folder = tmp_path_factory.mktemp("mindeye1")
    state = mindeye1_state(random_state("brain", BRAIN), random_state("prior", PRIOR), PRIOR["timesteps"])
    autoencoder = random_state("autoencoder", autoencoder_config([32, 32], SD_SCALE))
    torch.save(stripped(autoencoder, "vae."), folder / "vae.pth")
    sources = MindEye1Files(
        weights=str(save_last(folder / "last.pth", state)),
        low_level=str(save_last(folder / "low.pth", random_state("low_level", LOW_LEVEL))),
        blurry_autoencoder=str(folder / "vae.pth"),
    )
    draft_mindeye1(sources).seal(folder / "pack", name="one", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


@pytest.fixture(scope="module")
def mind(pack: EnginePack) -> MindEye1:
    return load_mindeye1(pack)


@pytest.fixture(scope="module")
def betas() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((3, VOXELS)).astype(np.float32)


@torch.no_grad()
def test_repeats_are_averaged_and_the_networks_follow_each_other(
    pack: EnginePack, mind: MindEye1, betas: np.ndarray[Any, Any]
) -> None:
    out = mind.decode(betas, seed=3)
    brain, low_level, autoencoder = (
        load(pack, name, device="cpu", dtype=torch.float32) for name in ("brain", "low_level", "blurry_autoencoder")
    )
    mean = torch.from_numpy(betas).mean(0)[None]
    np.testing.assert_allclose(out.retrieval, brain(mean)[1][0], rtol=0, atol=1e-5)
    blurry = autoencoder(low_level(mean)[0])[0].numpy() / 2 + 0.5
    np.testing.assert_allclose(out.blurry, blurry.clip(0, 1), rtol=0, atol=1e-5)
    assert out.tokens.shape == (TOKENS, DIM)
    assert out.absent == ("picture",)
    tokens = np.random.default_rng(2).standard_normal((5, TOKENS, DIM)).astype(np.float32)
    cosines = functional.cosine_similarity(
        torch.from_numpy(out.retrieval).flatten()[None], torch.from_numpy(tokens).flatten(1)
    ).tolist()
    found = ImagePool("abcde", tokens).nearest(out.retrieval, 5)
    assert dict(found) == pytest.approx(dict(zip("abcde", cosines, strict=True)), abs=1e-6)


def test_equal_betas_and_seed_give_the_same_tokens_and_others_do_not(
    mind: MindEye1, betas: np.ndarray[Any, Any]
) -> None:
    first = mind.decode(betas[0], seed=3)
    np.testing.assert_array_equal(mind.decode(betas[0], seed=3).tokens, first.tokens)
    assert not np.allclose(mind.decode(betas[0], seed=4).tokens, first.tokens)
    assert not np.allclose(mind.decode(betas[1], seed=3).tokens, first.tokens)


@torch.no_grad()
def test_golden_decoder_of_mindeye1(shared: Path) -> None:
    for golden in goldens(shared, "me1_prior"):
        network, condition = prior_of(golden, prefix=""), torch.from_numpy(golden.tensors["cond"][:1])
        guided = predictor(network, condition)
        parts = {
            "brain": lambda _, c=condition: {"tokens": c, "retrieval": c},
            "prior": lambda values, g=guided: {"tokens": g(values["x"], int(values["t"][0]))},
        }
        sizes = {"voxels": VOXELS}, {"timesteps": golden.dims["timesteps"]}
        stages = {
            name: StageTable(file="", inputs={}, outputs={}, sizes=one) for name, one in zip(parts, sizes, strict=True)
        }
        pack = EnginePack(folder=golden.path.parent, identity="golden", description=description(stages=stages))
        full = max(steps for _, steps in numbered(golden, r"sample(\d+)"))
        for name, steps in numbered(golden, r"sample(\d+)"):
            noise = np.stack([one[:1].numpy() for one in draws_of(golden, golden.dims["timesteps"] + 1)])
            runner = tensor_runner(parts, parts.__getitem__, device="cpu")
            drawn = torch.from_numpy(noise)
            runner = replace(runner, normal=lambda _, shape, drawn=drawn: drawn[: shape[0]])
            mind = MindEye1(pack, runner, prior_steps=steps)
            out = mind.decode(np.zeros(VOXELS), seed=0)
            assert out.absent == ("blurry", "picture")
            first = replace(golden, tensors={key: value[0] for key, value in golden.tensors.items() if value.ndim})
            close(first, name, out.tokens, LOOP)
            if steps == full:
                close(first, "vd_embedding", out.condition, LOOP)


def test_onnx_runtime_and_plans_give_the_numbers_of_torch(
    pack: EnginePack, mind: MindEye1, betas: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_pack(pack, tmp_path / "onnx", precision="float32", report=lambda line: None)
    exported, expected = open_pack(str(tmp_path / "onnx")), mind.decode(betas, seed=3)
    install(monkeypatch, Library())
    build_plans(exported, TensorRT(), flags=(), report=lambda line: None)
    for backend in (choose("onnx", exported), choose("auto", exported)):
        found = load_mindeye1(exported, backend=backend).decode(betas, seed=3)
        for name in ("tokens", "condition", "retrieval", "blurry"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-4)
    assert backend.name == "tensorrt"


def test_what_cannot_be_decoded_is_refused(pack: EnginePack, mind: MindEye1, betas: np.ndarray[Any, Any]) -> None:
    with pytest.raises(EngineError, match=f"betas of {VOXELS} voxels"):
        mind.decode(betas[:, :-1], seed=0)
    with pytest.raises(EngineError, match="expected finite betas, got 1 of"):
        mind.decode(np.where(np.arange(VOXELS) == 7, np.nan, betas[0]), seed=0)
    with pytest.raises(EngineError, match="expected kind 'mindeye2', got 'mindeye1'"):
        load_mindeye2(pack)
    with pytest.raises(EngineError, match="missing stages prior"):
        MindEye1(pack, tensor_runner(["brain"], dict.__getitem__, device="cpu"))  # type: ignore[arg-type]
