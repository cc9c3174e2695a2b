"""MindEye1 and MIRAGE's imagery decoder, cut down: the contract of families, and ONNX Runtime against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.compile.plan_building import export_pack
from rtdecode.__main__ import main
from rtdecode.decode.families.family import record_decoder
from rtdecode.decode.families.mindeye1 import FAMILY as MINDEYE1
from rtdecode.decode.families.mindeye1 import load_mindeye1
from rtdecode.decode.families.mirage_imagery import FAMILY as MIRAGE_IMAGERY
from rtdecode.decode.families.mirage_imagery import load_mirage_imagery
from rtdecode.decode.families.mirage_imagery.cascade_generator import CascadeGenerator, mixed_guides
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import MirageImageryDescription
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.runtime.runner import Runner, onnx_runner
from rtdecode.decode.runtime.torch_runner import torch_runner
from rtdecode.packs import EnginePack, open_pack
from rtdecode.testing import check_family
from tests.small_families import DIM, categorised, mindeye1_pack, mirage_imagery_pack

FAMILIES = {
    "mindeye1": (MINDEYE1, mindeye1_pack),
    "mindeye1, one token": (MINDEYE1, lambda folder: mindeye1_pack(folder, versatile=False)),
    "mirage-imagery": (MIRAGE_IMAGERY, mirage_imagery_pack),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, EnginePack]:
    family, make = FAMILIES[request.param]
    return family, make(tmp_path_factory.mktemp("pack"))


@pytest.fixture
def stimuli(made: tuple[Any, EnginePack], tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    names = [f"p{i}" for i in range(6)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    assert main(["engines", "embed", str(tmp_path), "--pack", str(made[1].folder)]) == 0
    return categorised(tmp_path, {name: "ab"[i % 2] for i, name in enumerate(names)})


def test_the_family_keeps_the_contract(made: tuple[Any, EnginePack], stimuli: Path) -> None:
    check_family(*made, stimuli)


def test_recorded_betas_are_decoded_by_the_networks_of_the_pack(made: tuple[Any, EnginePack]) -> None:
    family, pack = made
    betas = np.random.default_rng(6).standard_normal((3, 40)).astype(np.float32)
    load: Callable[..., Any] = load_mindeye1 if family is MINDEYE1 else load_mirage_imagery
    found, right = record_decoder(pack)(betas, 5), load(pack).decode(betas, seed=5)
    np.testing.assert_array_equal(found.picture, right.picture)
    assert found.tokens is not None
    tokens = right.retrieval if family is MINDEYE1 else right.heads["retrieval"]
    np.testing.assert_array_equal(found.tokens, tokens.reshape(-1))
    other = record_decoder(pack)(betas, 6)
    assert np.any(other.picture != found.picture)


@pytest.fixture(scope="module")
def backends(
    made: tuple[Any, EnginePack], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, EnginePack, EnginePack]:
    """The family, the pack and what ONNX Runtime runs of it; the export holds each part to 1e-4 on equal inputs."""
    family, pack = made
    if pack.description.tokens.count == 1 and family is MINDEYE1:
        pytest.skip("the same networks with fewer tokens")
    out = tmp_path_factory.mktemp("exported") / "onnx"
    export_pack(pack, out, precision="float32", report=lambda line: None)
    return family, pack, open_pack(str(out))


def test_onnx_runtime_gives_the_numbers_of_torch(backends: tuple[Any, EnginePack, EnginePack]) -> None:
    family, pack, exported = backends
    betas = np.random.default_rng(2).standard_normal(40).astype(np.float32)
    load: Callable[..., Any] = load_mindeye1 if family is MINDEYE1 else load_mirage_imagery
    by_torch = load(pack).decode(betas, seed=3)
    onnx = load(exported, backend=choose("onnx", exported))
    by_onnx = onnx.decode(betas, seed=3)
    if family is MINDEYE1:
        for name in ("tokens", "condition", "retrieval", "blurry"):
            np.testing.assert_allclose(getattr(by_onnx, name), getattr(by_torch, name), rtol=0, atol=1e-4)
        picture = by_onnx.picture
    else:
        for name, values in by_torch.heads.items():
            np.testing.assert_allclose(by_onnx.heads[name], values, rtol=0, atol=1e-4)
        # The low-level picture is cut to bytes before it is enlarged and sharpened twentyfold: a value within float
        # noise of a whole number, one in 10,000 of the 768, becomes another byte, and 30 levels in 26 x 26 of the
        # 64 x 64 pixels around it, in one of three colours.
        others = np.abs(by_onnx.low_level.astype(int) - by_torch.low_level) > 1
        assert others.mean() <= 2 * 26**2 / (3 * 64**2)
        picture = onnx.picture(by_torch.heads, by_torch.low_level, seed=3)
    # Pictures are bytes: 1e-4 of their range moves a value by at most one.
    assert np.abs(picture.astype(int) - by_torch.picture).max() <= 1


def test_the_cascades_samplers_give_the_latents_of_torch(backends: tuple[Any, EnginePack, EnginePack]) -> None:
    family, pack, exported = backends
    if family is MINDEYE1:
        pytest.skip("of Stable Cascade")
    table = pack.described(MirageImageryDescription).generator
    runners = (torch_runner(pack, device="cpu", precision="float32"), pack), (onnx_runner(exported), exported)
    rng = np.random.default_rng(5)
    low_level = rng.random((1, 3, table.low_level_px, table.low_level_px), dtype=np.float32)
    image, text, empty, pooled = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((1, DIM), (7, 20), (7, 20), (1, 20))
    )
    guides = mixed_guides(image, text, empty, pooled, table.text_share)

    def both(compute: Callable[[Runner, CascadeGenerator, Any], Any], given: Any) -> Any:
        """Compute of the same by both; what torch made."""
        right, found = (
            one.host(compute(one, CascadeGenerator(source, one, table), one.array(given))) for one, source in runners
        )
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 * np.abs(right).max())
        return right

    start = both(lambda runner, _, x: runner.open("effnet")({"picture": x})["latent"], low_level)
    coarse = both(lambda _, generator, x: generator.coarse(guides, x, 2, seed=3), start)
    fine = both(lambda _, generator, x: generator.fine(x, guides, seed=3), coarse)
    both(lambda _, generator, x: generator.picture(x), fine)
