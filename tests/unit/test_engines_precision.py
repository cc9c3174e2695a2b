"""Every part in every precision that is offered: exported, compared, loaded and decoded with on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")

from diffusers.models.upsampling import Upsample2D  # noqa: E402

from engines.compile.onnx_export import export_part, loaded  # noqa: E402
from engines.compile.parity import compare, compare_precision, reference  # noqa: E402
from engines.compile.plan_building import export_pack  # noqa: E402
from engines.compile.precisions import LEAST, TOLERANCES, borne, in_precision  # noqa: E402
from engines.importing import fake  # noqa: E402
from engines.sealed_copies import seal_copy  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.families.mindeye2 import load_mindeye2  # noqa: E402
from rtdecode.decode.families.mindeye2.recipe import Recipe  # noqa: E402
from rtdecode.decode.networks.prior import Gain  # noqa: E402
from rtdecode.decode.runtime.backends import choose  # noqa: E402
from rtdecode.decode.runtime.engine import OnnxEngine  # noqa: E402
from rtdecode.decode.runtime.parts import Part  # noqa: E402
from rtdecode.decode.runtime.runner import onnx_runner  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack  # noqa: E402
from rtdecode.packs.description import PackDescription, PartPrecision  # noqa: E402
from tests.thin_networks import thin_mindeye2  # noqa: E402

STAGES = ("ridge", "backbone", "prior", "converter", "captioner", "unclip", "autoencoder", "small_autoencoder")
PARTS = {*STAGES, "embedder", "unclip_context", "captioner_context"}
HALVES: tuple[PartPrecision, ...] = ("mixed", "float16", "bfloat16")
BACKBONE = 2e-2
QUICK = Recipe(prior_steps=3, unclip_steps=2, small_autoencoder=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    """All kinds of networks, in float32, each as small as it can be."""
    return thin_mindeye2(tmp_path_factory.mktemp("weights") / "pack", (*STAGES, "embedder"))


@pytest.fixture(scope="module", params=HALVES)
def half(request: pytest.FixtureRequest, weights: EnginePack, tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    out = tmp_path_factory.mktemp(request.param) / "pack"
    export_pack(weights, out, precision=request.param, strict=True, report=lambda _: None)
    return open_pack(str(out))


class Doubled(torch.nn.Module):
    """The autoencoder's step to 768 px: diffusers asks there whether the pictures have 2^31 elements, as 57 would."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Upsample2D(128)

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.up(*given),)


def test_networks_that_ask_how_large_an_array_is_are_exported_for_any_batch(tmp_path: Path) -> None:
    part = Part(name="up", module=Doubled(), inputs={"x": ["batch", 128, 384, 384]}, outputs=("y",))
    export_part(part, tmp_path / "up.onnx")
    (given,) = onnx.load(tmp_path / "up.onnx").graph.input
    assert [one.dim_param or one.dim_value for one in given.type.tensor_type.shape.dim] == ["batch", 128, 384, 384]


def asked_of(pack: EnginePack) -> PartPrecision:
    return pack.description.parts["converter"].precision


def test_every_part_is_in_the_precision_that_it_bears_and_says_so(half: EnginePack) -> None:
    asked, parts = asked_of(half), half.description.parts
    assert parts.keys() == PARTS
    kinds = {name: half.description.stage(part.stage).network for name, part in parts.items()}
    for name, part in parts.items():
        assert part.precision == {"autoencoder": "float32", "prior": "mixed"}.get(kinds[name], asked), name
        assert part.difference is not None
        limit = 1e-3 if kinds[name] == "autoencoder" else TOLERANCES[part.precision]
        assert part.difference <= part.tolerance == limit, name
        graph = onnx.load(half.folder / part.file).graph
        given = {one.type.tensor_type.elem_type for one in graph.input} & {1, 10, 16}  # of floating types
        held = {one.data_type for one in graph.initializer if np.prod(one.dims) > 1000}
        single, f16, bf16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
        whole = {"float32": {single}, "mixed": {single}, "float16": {f16}, "bfloat16": {bf16}}[part.precision]
        assert given == whole, name
        if name == "ridge":
            assert not held
        else:
            assert ({f16} if part.precision == "mixed" else whole) <= held, name


def test_norms_are_computed_in_single_precision(half: EnginePack) -> None:
    for part in half.description.parts.values():
        for node in onnx.load(half.folder / part.file).graph.node:
            if node.op_type in ("LayerNormalization", "GroupNormalization"):
                stash = [attribute.i for attribute in node.attribute if attribute.name == "stash_type"]
                assert stash in ([], [onnx.TensorProto.FLOAT]), part.file


def test_a_norm_of_numbers_whose_squares_are_none_in_half_precision_is_right() -> None:
    values = 400 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    found = Gain(64).half()(values.half())
    expected = torch.nn.functional.layer_norm(values, (64,), eps=1e-3)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("precision", HALVES)
def test_what_torch_rounds_is_seen_beside_what_onnx_runtime_does(weights: EnginePack, precision: PartPrecision) -> None:
    part = loaded(weights, "converter", "converter")
    right = reference(part)
    (again,) = compare_precision(right, part, "float32")
    with torch.no_grad():  # by hand: both layers rounded as the precision says
        values = part.examples(20_231, batch=1)["tokens"]
        exact = part.module(values)[0]
        to = torch.bfloat16 if precision == "bfloat16" else torch.float16
        rounded = in_precision(part.module, precision)(values if precision == "mixed" else values.to(to))[0].float()
    (found,) = compare_precision(right, part, precision)
    assert 0 == again.difference < found.difference < TOLERANCES[precision]
    assert found.difference == pytest.approx(float((rounded - exact).abs().max() / exact.abs().max()), rel=1e-6)


def test_a_pack_verifies_again(half: EnginePack, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "verify", str(half.folder)]) == 0
    said = capsys.readouterr().out
    assert asked_of(half) in said
    assert "float32" in said
    assert "nan" not in said


def test_a_pack_decodes_as_torch_does(half: EnginePack, weights: EnginePack) -> None:
    betas = np.random.default_rng(0).standard_normal(96).astype(np.float32)
    right = load_mindeye2(weights, backend=choose("torch", weights), recipe=QUICK).decode(betas, seed=3)
    if asked_of(half) == "bfloat16":
        chosen = choose("auto", half)
        if not torch.cuda.is_available():
            assert chosen.name == "torch"
            assert "no bfloat16" in chosen.reason
        with pytest.raises(EngineError, match=r"unclip_context.* in bfloat16.*--precision float16 \(or mixed\)"):
            choose("onnx", half)
        with pytest.raises(EngineError, match="in bfloat16"):
            onnx_runner(half)
        found = load_mindeye2(half, backend=chosen, recipe=QUICK).decode(betas, seed=3)
    else:
        chosen = choose("onnx", half)
        assert (
            chosen.precision
            == {"mixed": "mixed and float32", "float16": "float16 and mixed and float32"}[asked_of(half)]
        )
        found = load_mindeye2(half, backend=chosen, recipe=QUICK).decode(betas, seed=3)
    assert found.caption == right.caption
    assert found.picture is not None
    assert right.picture is not None
    assert np.abs(found.tokens - right.tokens).max() < BACKBONE * np.abs(right.tokens).max()
    # Guidance and the first noise level make a rounding a hundred times what it is: single pixels may differ visibly.
    assert right.picture.std() > 0.1
    assert np.abs(found.picture - right.picture).mean() < 0.01


@pytest.fixture
def loud(tmp_path: Path) -> EnginePack:
    """A converter with numbers between its layers that float16 does not hold, though it holds all weights."""
    fake.write_fake_mindeye2(tmp_path / "quiet", dims="small", stages=("converter",), precision="float32")
    pack = open_pack(str(tmp_path / "quiet"))

    def change(folder: Path) -> PackDescription:
        state = load_file(folder / "converter.safetensors")
        state["linear1.weight"] *= 5e4
        state["linear1.bias"] *= 5e4
        assert max(np.abs(values).max() for values in state.values()) < 65504
        save_file(state, folder / "converter.safetensors")
        return pack.description

    seal_copy(pack, tmp_path / "loud", change)
    return open_pack(str(tmp_path / "loud"))


def test_a_part_that_overflows_is_named_and_taken_in_a_better_precision(loud: EnginePack, tmp_path: Path) -> None:
    lines: list[str] = []
    export_pack(loud, tmp_path / "out", precision="float16", report=lines.append)
    assert [line.split(",")[0] for line in lines] == [
        "converter: not in float16",
        "converter: not in mixed",
        "converter: float32",
    ]
    (part,) = open_pack(str(tmp_path / "out")).description.parts.values()
    assert part.precision == "float32"
    assert part.tolerance == TOLERANCES["float32"]
    engine = OnnxEngine(tmp_path / "out" / part.file, name="loud", threads=1)
    assert compare(reference(loaded(loud, "converter", "converter")), engine)[0].difference < TOLERANCES["float32"]


def test_strict_refuses_the_same_part_by_name(
    loud: EnginePack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["engines", "export", str(loud.folder), "--out", str(tmp_path / "out"), "--precision", "float16"]
    assert main([*command, "--strict"]) == 1
    assert "converter in float16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_better_precisions_follow_in_order() -> None:
    assert list(borne("denoiser", "bfloat16")) == ["bfloat16", "float16", "mixed", "float32"]
    assert list(borne("denoiser", "float32")) == ["float32"]
    assert list(borne("prior", "float16")) == ["mixed", "float32"]
    assert list(borne("prior", "float32")) == ["float32"]
    assert [list(borne("autoencoder", one)) for one in HALVES] == [["float32"]] * 3
    assert LEAST.keys() == {"autoencoder", "prior"}
