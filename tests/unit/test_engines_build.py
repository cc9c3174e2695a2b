"""Exported packs and compiled plans: kept only if they equal torch, refused if made for anything else."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import tomli_w
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from rtdecode.packs.description import PACK_SCHEMA, StageTable
from rtdecode.packs.sealed import seal

torch = pytest.importorskip("torch")

from engines.compile.onnx_export import export_part, loaded, parts_of  # noqa: E402
from engines.compile.parity import agrees, compare, reference  # noqa: E402
from engines.compile.plan_building import build_plans, export_pack  # noqa: E402
from engines.embed.folder_embedding import embed_folder  # noqa: E402
from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.families.mindeye2 import load_mindeye2  # noqa: E402
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates  # noqa: E402
from rtdecode.decode.families.tiny.tiny_stages import load_stages  # noqa: E402
from rtdecode.decode.networks.build import load  # noqa: E402
from rtdecode.decode.networks.context import ContextDenoiser, DenoiserContext, context_names  # noqa: E402
from rtdecode.decode.networks.unclip import Denoiser, unclip_config  # noqa: E402
from rtdecode.decode.runtime.backends import choose  # noqa: E402
from rtdecode.decode.runtime.engine import OnnxEngine  # noqa: E402
from rtdecode.decode.runtime.parts import parts  # noqa: E402
from rtdecode.decode.runtime.plans import load_plan, plan_keys  # noqa: E402
from rtdecode.decode.runtime.tensorrt import TensorRT  # noqa: E402
from rtdecode.decode.runtime.torch_engine import TorchEngine  # noqa: E402
from rtdecode.decode.score.pool import embedding_in, narrowed, open_pool  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack  # noqa: E402
from rtdecode.statistics import cosines  # noqa: E402
from tests.fake_tensorrt import Library, install  # noqa: E402

STAGES = ("ridge", "prior", "converter", "captioner", "embedder")
PARTS = ("ridge", "prior", "converter", "captioner_context", "captioner", "embedder")


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    out = tmp_path_factory.mktemp("fake") / "pack"
    write_fake_mindeye2(out, dims="small", stages=STAGES, precision="float32")
    return open_pack(str(out))


@pytest.fixture(scope="module")
def exported(weights: EnginePack, tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    out = tmp_path_factory.mktemp("exported") / "pack"
    lines: list[str] = []
    export_pack(weights, out, precision="float32", report=lines.append)
    assert [line.split(":")[0] for line in lines] == list(PARTS)
    return open_pack(str(out))


@pytest.fixture
def copied(exported: EnginePack, tmp_path: Path) -> EnginePack:
    shutil.copytree(exported.folder, tmp_path / "pack")
    return open_pack(str(tmp_path / "pack"))


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = unclip_config(channels=(32, 64), depth=(1, 1), head_channels=32, context=24, vector=1024, side=8)
    return Denoiser(config).eval()


def test_keys_computed_once_give_the_same_noise(denoiser: Denoiser) -> None:
    x, t, tokens, vector = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 7, 24), torch.randn(2, 1024)
    with torch.no_grad():
        expected = denoiser(x, t, tokens, vector)
        linears = {id(layer) for layer in denoiser.modules() if isinstance(layer, torch.nn.Linear)}
        part = DenoiserContext(denoiser)
        context = part(tokens)
        found = ContextDenoiser(denoiser)(x, t, vector, *context)
    assert len(context) == len(context_names(denoiser))
    assert [type(layer) for layer in part.children()] == [torch.nn.Linear]  # one product for all layers
    left = {id(layer) for layer in denoiser.modules() if isinstance(layer, torch.nn.Linear)}
    assert len(linears - left) == len(context)  # no second copy of the weights
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_denoiser_is_exported_in_two_parts(denoiser: Denoiser, tmp_path: Path) -> None:
    latent: list[int | str] = ["batch", 4, 8, 8]
    spec = StageTable(
        file="",
        network="denoiser",
        inputs={"x": latent, "t": ["batch"], "tokens": ["batch", "tokens", 24], "vector": ["batch", 1024]},
        outputs={"noise": latent},
    )
    made = parts("unclip", spec, denoiser)
    assert [part.name for part in made] == ["unclip_context", "unclip"]
    for part in made:
        export_part(part, tmp_path / f"{part.name}.onnx")
        engine = OnnxEngine(tmp_path / f"{part.name}.onnx", name=part.name, threads=1)
        found = compare(reference(part, tokens=7), engine)
        assert agrees(found, 1e-4), found


def test_every_exported_part_equals_torch(exported: EnginePack) -> None:
    for stage, part in parts_of(exported):
        engine = OnnxEngine(exported.folder / f"{part.name}.onnx", name=part.name, threads=1)
        right = reference(loaded(exported, stage, part.name), tokens=16)
        assert agrees(compare(right, engine), 1e-4)


def test_an_exported_file_does_not_tell_where_it_was_made(exported: EnginePack) -> None:
    for path in exported.folder.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_the_ridge_takes_its_weights_as_inputs(exported: EnginePack) -> None:
    rng = np.random.default_rng(0)
    hidden = exported.description.size("ridge", "hidden")
    betas, weight, bias = rng.normal(size=(2, 33)), rng.normal(size=(hidden, 33)), rng.normal(size=hidden)
    engine = OnnxEngine(exported.folder / "ridge.onnx", name="ridge", threads=1)
    values = {"betas": betas, "weight": weight, "bias": bias}
    found = engine.run({name: value.astype(np.float32) for name, value in values.items()})["hidden"]
    np.testing.assert_allclose(found[:, 0], betas @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_torch_refuses_wrong_names_and_shapes(weights: EnginePack) -> None:
    part = loaded(weights, "converter", "converter")
    engine = TorchEngine(part, device="cpu")
    with pytest.raises(EngineError, match="expected inputs"):
        engine.run({})
    with pytest.raises(EngineError, match="converter"):
        engine.run({"tokens": np.zeros((1, 3, 5), np.float32)})


def test_a_fault_of_the_device_is_no_error_of_the_request(weights: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that met it must end and be replaced, not go on answering with errors."""
    part = loaded(weights, "converter", "converter")
    engine = TorchEngine(part, device="cpu")

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(part.module, "forward", broken)
    with pytest.raises(RuntimeError, match="CUDA error") as caught:
        engine.run({"tokens": np.zeros((1, 16, 104), np.float32)})
    assert not isinstance(caught.value, EngineError)


def test_plans_that_agree_are_kept_and_load(copied: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    install(monkeypatch, library)
    builder = TensorRT()
    written = build_plans(copied, builder, flags=("REFIT",), report=silent)
    assert [path.stem for path in written] == list(PARTS)
    assert set(library.flags) == {"refit"}
    again = open_pack(str(copied.folder))  # plans are no part of the seal
    assert again.identity == copied.identity
    key = plan_keys(again, builder.hardware(), ("REFIT",))["converter"]
    right = reference(loaded(again, "converter", "converter"))
    assert agrees(compare(right, load_plan(again, "converter", key, builder)), 1e-4)


def test_a_plan_that_is_wrong_is_not_kept(copied: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library(error=0.5))
    with pytest.raises(EngineError, match=r"expected at most 0.0001 from torch in float32; nothing was kept"):
        build_plans(copied, TensorRT(), flags=(), report=silent)
    assert not list(copied.folder.glob("plans/*/*"))


def test_the_pack_says_how_much_a_plan_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_mindeye2(tmp_path / "weights", dims="small", stages=("embedder",), precision="float32")
    export = ["engines", "export", str(tmp_path / "weights"), "--out", str(tmp_path / "p"), "--tolerance"]
    assert main([*export, "1e-12"]) == 1  # less than rounding
    assert not (tmp_path / "p").exists()
    assert main([*export, "0.9"]) == 0
    pack = open_pack(str(tmp_path / "p"))
    assert {part.tolerance for part in pack.description.parts.values()} == {0.9}
    install(monkeypatch, Library(error=0.5))
    (plan,) = build_plans(pack, TensorRT(), flags=(), report=silent)
    assert plan.stem == "embedder"


def test_a_pack_that_an_older_version_exported_is_refused(exported: EnginePack, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        for path in exported.folder.rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                (folder / path.relative_to(exported.folder)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / path.relative_to(exported.folder))
        said = tomllib.loads((folder / "pack.toml").read_text())
        del said["parts"]["prior"]["tolerance"]
        (folder / "pack.toml").write_bytes(tomli_w.dumps(said).encode())

    seal(tmp_path / "old", PACK_SCHEMA, write)
    assert main(["engines", "verify", str(tmp_path / "old")]) == 1
    with pytest.raises(EngineError, match=r"pack\.toml: parts\.prior\.tolerance: expected a value, got none"):
        open_pack(str(tmp_path / "old"))


def test_a_plan_for_something_else_is_refused_with_both_keys(
    copied: EnginePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Library("10.14.1"))
    build_plans(copied, TensorRT(), flags=(), report=silent)
    install(monkeypatch, Library("11.4.0", typed=False))
    newer = TensorRT()
    key = plan_keys(copied, newer.hardware())["prior"]
    with pytest.raises(EngineError) as caught:
        load_plan(copied, "prior", key, newer)
    assert "expected a plan for tensorrt 11.4.0" in str(caught.value)
    assert "tensorrt 10.14.1 instead of 11.4.0" in str(caught.value)
    assert "rtdecode engines build" in str(caught.value)


def test_a_library_that_cannot_read_attention_is_refused_by_its_version(
    copied: EnginePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_attention = {
        path.name
        for path in copied.folder.glob("*.onnx")
        if any(node.op_type == "Attention" for node in onnx.load(path).graph.node)
    }
    assert with_attention
    install(monkeypatch, Library("10.13.3"))
    with pytest.raises(EngineError, match=r"expected TensorRT 10\.14 or newer, .*got 10\.13\.3") as caught:
        build_plans(copied, TensorRT(), flags=(), report=silent)
    assert str(caught.value).split(":")[0] in with_attention
    assert not list(copied.folder.glob("plans/*/*"))


def test_an_altered_plan_is_refused(copied: EnginePack, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library())
    builder = TensorRT()
    build_plans(copied, builder, flags=(), report=silent)
    key = plan_keys(copied, builder.hardware())["prior"]
    plan = copied.folder / "plans" / key.digest / "prior.plan"
    plan.write_bytes(plan.read_bytes() + b"x")
    with pytest.raises(EngineError, match="content differs from its sidecar"):
        load_plan(copied, "prior", key, builder)
    sidecar = json.loads(plan.with_suffix(".json").read_text())
    sidecar["key"]["driver"] = "another"
    plan.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(EngineError, match="driver another"):
        load_plan(copied, "prior", key, builder)


def test_a_pack_without_networks_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="got ONNX files already"):
        export_pack(open_pack("tiny"), tmp_path / "out", precision="float32", report=silent)


def test_the_commands_tell_what_they_find(exported: EnginePack, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "verify", str(exported.folder)]) == 0
    assert "ONNX Runtime against torch" in capsys.readouterr().out
    assert main(["engines", "list", str(exported.folder)]) == 0
    assert "never on a GPU yet" in capsys.readouterr().out
    assert main(["engines", "bench", str(exported.folder), "--times", "2"]) == 0
    assert "converter" in capsys.readouterr().out
    assert main(["engines", "build", str(exported.folder)]) == 1
    assert "TensorRT" in capsys.readouterr().err


def test_pictures_are_embedded(tmp_path: Path, exported: EnginePack, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in ("b", "a"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    for pack, shape in (("tiny", (2, 20, 32)), (str(exported.folder), (2, 16, 104))):
        out = tmp_path / "embedded" / "tokens.safetensors"
        assert main(["engines", "embed", str(tmp_path / "pictures"), "--pack", pack, "--out", str(out)]) == 0
        with safe_open(out, framework="numpy") as found:
            assert found.get_tensor("tokens").shape == shape
            assert json.loads(found.metadata()["names"]) == ["a", "b"]
            tokens = found.get_tensor("tokens")
        if pack == "tiny":
            expected = embed_candidates(load_stages(open_pack("tiny")), tmp_path / "pictures").tokens
        else:
            network = load(exported, "embedder", device="cpu", dtype=torch.float32)
            shown = [np.asarray(Image.open(tmp_path / "pictures" / f"{name}.png")) for name in "ab"]
            batch = torch.from_numpy(np.stack(shown).transpose(0, 3, 1, 2).astype(np.float32) / 255)
            with torch.no_grad():
                expected = network(batch).numpy()  # which resizes as MindEye2 does
        np.testing.assert_allclose(tokens, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.jpg")
    out = tmp_path / "again.safetensors"
    assert main(["engines", "embed", str(tmp_path / "pictures"), "--out", str(out)]) == 2
    assert "expected one picture of a, got a." in capsys.readouterr().err


def test_what_only_torch_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_mindeye2(tmp_path / "weights", dims="small", stages=("converter",), precision="float32")
    export_pack(open_pack(str(tmp_path / "weights")), tmp_path / "half", precision="bfloat16", report=silent)
    assert main(["engines", "verify", str(tmp_path / "half")]) == 0
    said = capsys.readouterr().out
    assert "bfloat16, which it does not run, by torch alone" in " ".join(said.split())


def test_embedded_pictures_are_searched(tmp_path: Path, exported: EnginePack) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    out = tmp_path / "tokens.safetensors"
    assert main(["engines", "embed", str(tmp_path / "pictures"), "--out", str(out)]) == 0
    pack = open_pack("tiny")
    candidates = embed_candidates(load_stages(pack), tmp_path / "pictures")
    (best, cosine), *_ = open_pool(out, pack).nearest(candidates.tokens[1], 2)
    alone = embedding_in(out, pack, best)
    assert alone is not None
    assert cosines(candidates.tokens[1].reshape(1, -1), alone.reshape(1, -1)) == pytest.approx(cosine)
    assert embedding_in(out, pack, "no such picture") is None
    assert best == "b"
    assert cosine == pytest.approx(1, abs=1e-3)
    embed_folder(pack, tmp_path / "pictures", out, threads=1, exact_bytes=0, progress=lambda *_: None)
    indexed = open_pool(out, pack, exact_bytes=0)
    assert not indexed.exact
    assert indexed.nearest(candidates.tokens[1], 1)[0] == (best, pytest.approx(cosine, abs=1e-5))
    with safe_open(out, framework="numpy") as found:
        expected = narrowed(found.get_tensor("tokens").reshape(3, -1))
        np.testing.assert_array_equal(found.get_tensor("narrow"), expected)
    with pytest.raises(EngineError, match="embed them anew"):
        open_pool(out, exported)
    with pytest.raises(EngineError, match="expected embeddings"):
        open_pool(tmp_path / "pictures" / "a.png", pack)


def test_a_pack_in_half_precision_does_all_that_one_in_single_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ("ridge", "backbone", "prior", "embedder")
    write_fake_mindeye2(tmp_path / "fake", dims="small", stages=stages, precision="float32")
    half = str(tmp_path / "half")
    assert main(["engines", "export", str(tmp_path / "fake"), "--out", half, "--precision", "float16"]) == 0
    pack = open_pack(half)
    for spec in pack.description.parts.values():
        assert spec.difference is not None
        assert 0 < spec.difference <= spec.tolerance
        assert spec.precision == ("mixed" if spec.stage == "prior" else "float16")

    rng = np.random.default_rng(0)
    (tmp_path / "stimuli").mkdir()
    for i in range(9):
        picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        picture.save(tmp_path / "stimuli" / f"s{i}.png")
    pictures = str(tmp_path / "pictures.safetensors")
    assert main(["engines", "embed", str(tmp_path / "stimuli"), "--pack", half, "--out", pictures]) == 0
    voxels = pack.description.stage("ridge").sizes["voxels"][0]
    trials = {"betas": rng.standard_normal((18, voxels)).astype(np.float32), "picture": np.arange(18) % 9}
    save_file(trials, tmp_path / "sub-01.safetensors")
    visit = str(tmp_path / "visit")
    participant = f"0={tmp_path / 'sub-01.safetensors'}"
    assert main(["engines", "latents", half, "--pictures", pictures, "--participant", participant, "--out", visit]) == 0
    assert main(["engines", "verify", visit]) == 0
    assert main(["engines", "bench", visit, "--times", "1"]) == 0
    assert main(["engines", "embed", str(tmp_path / "stimuli"), "--pack", visit]) == 0

    betas = rng.standard_normal((1, voxels)).astype(np.float32)
    found, right = (
        load_mindeye2(opened, backend=choose(backend, opened)).decode(betas, seed=1)
        for opened, backend in ((open_pack(visit), "onnx"), (open_pack(str(tmp_path / "fake")), "torch"))
    )
    assert np.corrcoef(np.ravel(found.tokens), np.ravel(right.tokens))[0, 1] > 0.999

    install(monkeypatch, Library())
    build_plans(open_pack(visit), TensorRT(), flags=(), report=silent)
    compiled = load_mindeye2(open_pack(visit), backend=choose("tensorrt", open_pack(visit))).decode(betas, seed=1)
    np.testing.assert_allclose(compiled.tokens, found.tokens, atol=1e-2 * np.abs(found.tokens).max())
