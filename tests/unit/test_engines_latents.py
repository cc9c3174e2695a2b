"""A pack's map from image tokens to hidden values, against scikit-learn on the pack's own ridge outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from rtdecode.decode.families.latent_map import LatentsTable, latents_of
from rtdecode.packs.description import PackDescription

torch = pytest.importorskip("torch")

from safetensors.torch import load_file as load_torch  # noqa: E402
from safetensors.torch import save_file as save_torch  # noqa: E402

from engines.compile.plan_building import export_pack  # noqa: E402
from engines.embed.latent_fit import LatentOrder, learn_latents  # noqa: E402
from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from engines.sealed_copies import seal_copy  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.families.latent_map import LatentMap, latent_map  # noqa: E402
from rtdecode.decode.families.mindeye2.assembly import ridge_layer  # noqa: E402
from rtdecode.decode.families.stimulus_folder import EMBEDDINGS  # noqa: E402
from rtdecode.decode.networks.build import load as load_network  # noqa: E402
from rtdecode.errors import EngineError, TrainingError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack  # noqa: E402

Data = dict[str, dict[str, NDArray[Any]]]
VOXELS, HIDDEN, TOKENS, DIM = (96, 33), 64, 16, 104
PICTURES, SEEN = 40, 24


def silent(_: float) -> None:
    pass


def table_of(pack: EnginePack) -> LatentsTable:
    table = latents_of(pack)
    assert table is not None
    return table


def with_ridges(pack: EnginePack, out: Path, dtype: type[np.floating[Any]], **settings: Any) -> EnginePack:
    """Copy a pack and give it two ridge layers."""
    rng = np.random.default_rng(2)
    layers: dict[str, NDArray[Any]] = {}
    for number, voxels in enumerate(VOXELS):
        layers[f"linears.{number}.weight"] = rng.normal(scale=voxels**-0.5, size=(HIDDEN, voxels)).astype(dtype)
        layers[f"linears.{number}.bias"] = rng.normal(size=HIDDEN).astype(dtype)

    def change(folder: Path) -> PackDescription:
        stages = dict(pack.description.stages)
        save_file(layers, folder / stages["ridge"].file)
        stages["ridge"] = replace(stages["ridge"], sizes={"voxels": list(VOXELS), "hidden": HIDDEN})
        return replace(pack.description, **settings, stages=stages)

    seal_copy(pack, out, change)
    return open_pack(str(out))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    folder = tmp_path_factory.mktemp("packs")
    write_fake_mindeye2(folder / "one", dims="small", stages=("ridge", "backbone", "embedder"), precision="float32")
    return with_ridges(open_pack(str(folder / "one")), folder / "two", np.float32)


@pytest.fixture
def data() -> Data:
    """Trials of two participants who saw some of the pictures, whose betas hold their tokens in noise."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(PICTURES, 4)) @ rng.normal(size=(4, TOKENS * DIM))
    tokens = (factors + 0.3 * rng.normal(size=factors.shape)).reshape(PICTURES, TOKENS, DIM).astype(np.float16)
    made: Data = {"pictures": {"tokens": tokens}}
    choice = rng.permutation(PICTURES)[:SEEN]
    for number, voxels in enumerate(VOXELS):
        picture = rng.choice(choice, 70 + number)
        image = tokens.reshape(PICTURES, -1).astype(np.float64)[picture]
        betas = image @ rng.normal(size=(TOKENS * DIM, voxels)) * (TOKENS * DIM) ** -0.5
        betas += 0.3 * rng.normal(size=betas.shape)
        made[f"{number}"] = {"betas": betas.astype(np.float32), "picture": picture.astype(np.int64)}
    return made


def order_of(folder: Path, data: Data, **settings: Any) -> LatentOrder:
    """Write the files of data."""
    for name, tensors in data.items():
        save_file(tensors, folder / f"{name}.safetensors")
    people = [(int(name), folder / f"{name}.safetensors") for name in data if name != "pictures"]
    return LatentOrder(pictures=folder / "pictures.safetensors", participants=people, **settings)


def outputs(pack: EnginePack, data: Data) -> tuple[list[int], NDArray[np.float64]]:
    """Rows of the pictures that were seen and the mean of their ridge outputs, trial after trial."""
    layers = {name: value.astype(np.float64) for name, value in load_file(pack.folder / "ridge.safetensors").items()}
    found: dict[int, list[NDArray[np.float64]]] = {}
    for name in set(data) - {"pictures"}:
        for beta, picture in zip(data[name]["betas"], data[name]["picture"], strict=True):
            one = layers[f"linears.{name}.weight"] @ beta.astype(np.float64) + layers[f"linears.{name}.bias"]
            found.setdefault(int(picture), []).append(one)
    rows = sorted(found)
    return rows, np.stack([np.mean(found[row], 0) for row in rows])


@pytest.mark.parametrize("components", [5, 512])
def test_the_map_is_a_ridge_on_principal_components(
    pack: EnginePack, data: Data, tmp_path: Path, components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.embed.latent_fit._TRIALS", 16)
    learned = learn_latents(pack, order_of(tmp_path, data, components=components), tmp_path / "new", progress=silent)
    made = open_pack(str(tmp_path / "new"))
    table = table_of(made)
    rows, targets = outputs(pack, data)
    assert table.pictures == learned.pictures == len(rows)
    assert table.trials == learned.trials == 141
    assert table.participants == [0, 1]
    assert table.components == learned.components == min(components, len(rows) - 1)
    flat = data["pictures"]["tokens"].reshape(PICTURES, -1).astype(np.float64)
    pca = PCA(learned.components, svd_solver="full").fit(flat[rows])
    peer = Ridge(alpha=table.penalty).fit(pca.transform(flat[rows]), targets)
    expected = peer.predict(pca.transform(flat))
    got = latent_map(made)(data["pictures"]["tokens"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    scores = pca.transform(flat[rows])
    error = 0.0
    for i, wanted in enumerate(targets):
        others = np.arange(len(rows)) != i
        guess = Ridge(alpha=table.penalty).fit(scores[others], targets[others]).predict(scores[i : i + 1])
        error += float(np.square(guess - wanted).sum())
    total = float(np.square(targets - targets.mean(0)).sum())
    assert table.held_out_r2 == learned.held_out_r2 == pytest.approx(1 - error / total, abs=1e-4)
    assert learned.held_out_r2 > 0


def test_all_else_in_the_pack_stays(pack: EnginePack, data: Data, tmp_path: Path) -> None:
    learned = learn_latents(pack, order_of(tmp_path, data), tmp_path / "new", progress=silent)
    made = open_pack(str(tmp_path / "new"))
    assert made.identity == learned.identity
    assert made.name == "new"
    before, after = (json.loads((one.folder / "manifest.json").read_text())["files"] for one in (pack, made))
    assert {name for name in after if after[name] != before.get(name)} == {"pack.toml", "latents.safetensors"}
    assert replace(made.description, name=pack.name, latents=None) == pack.description
    arrays = load_file(made.folder / "latents.safetensors")
    k = learned.components
    assert {name: (value.shape, value.dtype) for name, value in arrays.items()} == {
        "token_mean": ((TOKENS * DIM,), np.float32),
        "basis": ((k, TOKENS * DIM), np.float32),
        "weights": ((k, HIDDEN), np.float32),
        "intercept": ((HIDDEN,), np.float32),
    }


def test_exported_parts_stay(data: Data, tmp_path: Path) -> None:
    write_fake_mindeye2(tmp_path / "weights", dims="small", stages=("ridge", "backbone"), precision="float32")
    export_pack(open_pack(str(tmp_path / "weights")), tmp_path / "first", precision="float32", report=lambda _: None)
    exported = open_pack(str(tmp_path / "first"))
    (tmp_path / "first" / "plans").mkdir()
    (tmp_path / "first" / "plans" / "a.plan").write_bytes(b"plan")
    del data["1"]
    learn_latents(exported, order_of(tmp_path, data), tmp_path / "second", progress=silent)
    made = open_pack(str(tmp_path / "second"))
    assert made.description.parts == exported.description.parts
    assert (made.folder / "backbone.onnx").read_bytes() == (exported.folder / "backbone.onnx").read_bytes()
    assert not (made.folder / "plans").exists()


@pytest.mark.parametrize("block", [1, SEEN * DIM * 3])
def test_the_size_of_blocks_changes_nothing(pack: EnginePack, data: Data, tmp_path: Path, block: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done: list[float] = []
    learn_latents(pack, order_of(tmp_path, data, components=9), whole, progress=silent)
    learn_latents(pack, order_of(tmp_path, data, components=9, block=block), parts, progress=done.append)
    assert len(done) > 2
    assert sum(done) == pytest.approx(1)
    first, second = (open_pack(str(folder)) for folder in (whole, parts))
    assert table_of(first).held_out_r2 == pytest.approx(table_of(second).held_out_r2, rel=1e-9)
    tokens = data["pictures"]["tokens"]
    np.testing.assert_allclose(latent_map(first)(tokens), latent_map(second)(tokens), atol=1e-5)


def test_a_half_precision_pack_gets_a_half_precision_basis(pack: EnginePack, data: Data, tmp_path: Path) -> None:
    half = with_ridges(pack, tmp_path / "half", np.float16, precision="float16")
    order = order_of(tmp_path, data, components=9)
    learn_latents(half, order, tmp_path / "new", progress=silent)
    made = latent_map(open_pack(str(tmp_path / "new")))
    assert made.basis.dtype == np.float16
    rows, targets = outputs(half, data)
    flat = data["pictures"]["tokens"].reshape(PICTURES, -1).astype(np.float64)
    pca = PCA(9, svd_solver="full").fit(flat[rows])
    penalty = table_of(open_pack(str(tmp_path / "new"))).penalty
    expected = Ridge(alpha=penalty).fit(pca.transform(flat[rows]), targets).predict(pca.transform(flat))
    np.testing.assert_allclose(made(data["pictures"]["tokens"]), expected, atol=2e-3 * np.abs(expected).max())


def test_a_map_is_applied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(5, 60)).astype(np.float16)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((60,), (5, 3), (3,))]
    made = LatentMap(token_mean=arrays[0], basis=basis, weights=arrays[1], intercept=arrays[2])
    tokens = rng.normal(size=(7, 6, 10)).astype(np.float16)
    flat = tokens.reshape(7, 60).astype(np.float64)
    expected = (flat - arrays[0]) @ basis.T.astype(np.float64) @ arrays[1] + arrays[2]
    for block in (1, 7 * 11, 1 << 23):
        monkeypatch.setattr("rtdecode.decode.families.latent_map._BLOCK", block)
        np.testing.assert_allclose(made(tokens), expected, rtol=1e-4, atol=1e-4)
        assert made(tokens).dtype == np.float32
    assert made(tokens[:0]).shape == (0, 3)
    with pytest.raises(EngineError, match=r"with 60 values of each picture, got shape \(7, 6, 9\)"):
        made(tokens[..., :9])


def test_a_pack_without_a_map_says_how_to_get_one(pack: EnginePack) -> None:
    with pytest.raises(EngineError, match=r"expected a table latents, got none: rtdecode engines latents .*two"):
        latent_map(pack)


def spoil(data: Data, name: str, tensor: str, at: Any, value: float) -> Data:
    data[name][tensor][at] = value
    return data


def refused(pack: EnginePack, data: Data, folder: Path, message: str, **settings: Any) -> None:
    with pytest.raises(TrainingError, match=message):
        learn_latents(pack, order_of(folder, data, **settings), folder / "new", progress=silent)
    assert not (folder / "new").exists()


def test_data_that_do_not_fit_are_refused(pack: EnginePack, data: Data, tmp_path: Path) -> None:
    refused(pack, data, tmp_path, "components: expected at least 1, got 0", components=0)
    wrong = {**data, "1": {**data["1"], "betas": data["1"]["betas"][:, 1:]}}
    refused(pack, wrong, tmp_path, r"1\.safetensors: betas: expected 33 voxels, those of participant 1, got 32")
    wrong = {**data, "pictures": {"tokens": data["pictures"]["tokens"].reshape(PICTURES, DIM, TOKENS)}}
    refused(pack, wrong, tmp_path, r"tokens: expected \(tokens, dim\) \(16, 104\) for this pack, got \(104, 16\)")
    wrong = {**data, "0": {**data["0"], "picture": data["0"]["picture"].astype(np.float32)}}
    refused(pack, wrong, tmp_path, "integers from 0 to 39, got float32")
    few = {**data, "0": {name: value[:4] for name, value in data["0"].items()}}
    refused(pack, {name: few[name] for name in ("pictures", "0")}, tmp_path, "at least 8 pictures, got [1-4]")
    refused(pack, {**data, "0": {"betas": data["0"]["betas"]}}, tmp_path, "wrong or missing: picture")


@pytest.mark.parametrize("row", [-1, PICTURES])
def test_rows_that_are_no_pictures_are_refused(pack: EnginePack, data: Data, tmp_path: Path, row: int) -> None:
    refused(pack, spoil(data, "1", "picture", 5, row), tmp_path, rf"1\.safetensors: picture: .* from 0 to 39, .*{row}")


def test_values_that_are_not_finite_are_refused(pack: EnginePack, data: Data, tmp_path: Path) -> None:
    row = int(data["1"]["picture"][0])
    tokens = data["pictures"]["tokens"].copy()
    refused(pack, spoil(data, "pictures", "tokens", (row, 3, 4), np.inf), tmp_path, f"got others in row {row}")
    data["pictures"]["tokens"] = tokens
    unseen = next(i for i in range(PICTURES) if i not in {*data["0"]["picture"], *data["1"]["picture"]})
    spoil(data, "pictures", "tokens", (unseen, 0, 0), np.nan)
    learn_latents(pack, order_of(tmp_path, data), tmp_path / "unseen", progress=silent)  # nobody saw it: not read
    refused(pack, spoil(data, "0", "betas", (2, 5), np.nan), tmp_path, r"0\.safetensors: betas: .* got 1 that are not")


def test_packs_that_cannot_have_a_map_are_refused(pack: EnginePack, data: Data, tmp_path: Path) -> None:
    order = order_of(tmp_path, data)
    with pytest.raises(EngineError, match="expected a pack of kind mindeye1, or mindeye2 with"):
        learn_latents(open_pack("tiny"), order, tmp_path / "new", progress=silent)
    other = LatentOrder(pictures=order.pictures, participants=[(2, tmp_path / "1.safetensors")])
    with pytest.raises(EngineError, match="expected a participant from 0 to 1, got 2"):
        learn_latents(pack, other, tmp_path / "new", progress=silent)
    write_fake_mindeye2(tmp_path / "c", dims="small", stages=("ridge",))
    with pytest.raises(EngineError, match="with stages ridge and backbone"):
        learn_latents(open_pack(str(tmp_path / "c")), order, tmp_path / "new", progress=silent)
    half = {"tokens": torch.zeros(3, TOKENS, DIM, dtype=torch.bfloat16)}
    save_torch(half, tmp_path / "pictures.safetensors")
    with pytest.raises(TrainingError, match="expected float16 or float32, got bfloat16 in tokens"):
        learn_latents(pack, order, tmp_path / "new", progress=silent)


def test_a_ridge_in_bfloat16_is_read_where_there_is_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_mindeye2(tmp_path / "b", dims="small", stages=("ridge",), precision="bfloat16")
    pack = open_pack(str(tmp_path / "b"))
    stored = load_torch(tmp_path / "b" / "ridge.safetensors")
    for found, part in zip(ridge_layer(pack, 0), ("weight", "bias"), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, stored[f"linears.0.{part}"].float().numpy())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineError, match="got bfloat16: rtdecode engines export"):
        ridge_layer(pack, 0)


def test_pictures_are_embedded_with_their_latents(
    pack: EnginePack, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = order_of(tmp_path, data)
    people = [f"--participant={number}={path}" for number, path in order.participants]
    out = str(tmp_path / "mapped")
    assert main(["engines", "latents", str(pack.folder), "--pictures", str(order.pictures), *people, "--out", out]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    made = open_pack(out)
    assert f"sealed as {made.identity}; 24 pictures, 141 trials, 23 components, the rank of the tokens; 512" in said
    assert f"held-out R2 {table_of(made).held_out_r2:.3f} (0: no better than" in said

    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)).save(images / f"{name}.png")
    assert main(["engines", "embed", str(images), "--pack", out]) == 0
    assert f"{EMBEDDINGS}: 2 pictures, 16 tokens of 104 channels each, and their latents" in (
        capsys.readouterr().out.replace("\n", "")
    )
    with safe_open(images / EMBEDDINGS, framework="numpy") as file:
        tokens, latents, told = file.get_tensor("tokens"), file.get_tensor("latents"), file.metadata()
    assert latents.dtype == np.float32
    assert told["latents"] == made.digest("latents.safetensors") != ""
    arrays = {name: value.astype(np.float64) for name, value in load_file(made.folder / "latents.safetensors").items()}
    scores = (tokens.reshape(2, -1).astype(np.float64) - arrays["token_mean"]) @ arrays["basis"].T
    expected = scores @ arrays["weights"] + arrays["intercept"]
    np.testing.assert_allclose(latents, expected, atol=1e-4 * np.abs(expected).max())

    assert main(["engines", "embed", str(images), "--pack", str(pack.folder), "--out", str(tmp_path / "plain")]) == 0
    with safe_open(tmp_path / "plain", framework="numpy") as file:
        assert set(file.keys()) == {"tokens"}
        assert "latents" not in file.metadata()
        np.testing.assert_array_equal(file.get_tensor("tokens"), tokens)
    assert "their latents" not in capsys.readouterr().out
    assert main(["engines", "verify", out]) == 0
    assert "latents: image tokens -> hidden, 23 components, held-out R2 0." in capsys.readouterr().out


def test_pictures_are_embedded_as_the_unclip_is_to_make_them(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(shown).save(images / "a.png")
    Image.fromarray(shown).resize((90, 70)).save(images / "b.png")
    write_fake_mindeye2(tmp_path / "p", dims="small", stages=("embedder", "unclip", "autoencoder"), precision="float32")
    assert main(["engines", "embed", str(images), "--pack", str(tmp_path / "p"), "--unclip-latents"]) == 0
    latent = load_file(images / EMBEDDINGS)["latent"]
    assert latent.shape == (2, 4, 8, 8)  # of 64 px
    autoencoder = load_network(open_pack(str(tmp_path / "p")), "autoencoder", device="cpu", dtype=torch.float32)
    picture = torch.from_numpy(shown.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)[None]
    with torch.no_grad():
        expected = autoencoder.vae.encode(picture).latent_dist.mode() * 0.13025
    np.testing.assert_allclose(latent[0], expected[0].numpy(), rtol=0, atol=2e-3 * float(expected.abs().max()))
    assert main(["engines", "embed", str(images), "--pack", "tiny", "--unclip-latents"]) == 1


@pytest.mark.parametrize("text", ["betas.safetensors", "x=betas.safetensors", "-1=b", "1="])
def test_a_participant_without_number_or_file_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["engines", "latents", "tiny", "--pictures", "p", "--out", "o", f"--participant={text}"])
    assert "expected N=FILE, N the number of a ridge layer" in capsys.readouterr().err
