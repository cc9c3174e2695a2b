"""MIRAGE (encoding) and GNet: the published code's own numbers through files, import and pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.importing.drafts import Draft
from engines.importing.gnet_files import draft_gnet
from engines.importing.mirage_encoding_files import MirageEncodingFiles, draft_mirage_encoding
from rtdecode.decode.families.encoding import MirageEncodingDescription
from rtdecode.decode.networks.build import empty, load
from rtdecode.decode.networks.film_encoder import MODALITIES, FilmEncoder, averaging, rotary_frequencies
from rtdecode.decode.networks.gnet import GNet
from rtdecode.errors import CheckpointError, EngineError
from rtdecode.evaluate.evaluation import embedded
from rtdecode.packs import open_pack
from rtdecode.settings import DecodeSettings
from tests.golden import Golden, close, read

MIRAGE = 2e-5
GNET = 1e-6
MAP = 5e-6
"""Of single values of a map, 1.5 at most: float32 rounds; in float64 the golden itself is 1.5e-6 away."""
LAYOUTS = ("interleaved", "halfsplit")
VERSIONS = {"interleaved": None, "halfsplit": "1.30.0"}
FREQUENCIES = "temporal_encoder.encoder.rotary_pos_emb.inv_freq"


def golden_of(shared: Path, layout: str) -> Golden:
    path = shared / "golden" / f"mirage_small_{layout}.json"
    tensors = load_file(path.with_name(f"mirage_small_out_{layout}.safetensors"))
    tensors = {key: value.numpy() for key, value in tensors.items()}
    return Golden(path=path, info=json.loads(path.read_text()), tensors=tensors)


def given(shared: Path) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in load_file(shared / "golden" / "mirage_small_weights_inputs.safetensors").items()}


def weights(shared: Path, layout: str) -> dict[str, torch.Tensor]:
    """As a file of the layout holds them: gains are stored as they are, or less one."""
    state = {key[2:]: value for key, value in given(shared).items() if key.startswith("w.")}
    if layout == "halfsplit":
        state = {key: value + 1 if key.endswith(".g") else value for key, value in state.items()}
    golden = golden_of(shared, layout)
    return state | {FREQUENCIES: rotary_frequencies(golden.dims["hidden"] // golden.dims["heads"])}


def sources(golden: Golden, *paths: Path, version: str | None) -> MirageEncodingFiles:
    dims = golden.dims
    return MirageEncodingFiles(
        weights=[str(path) for path in paths],
        x_transformers=version,
        layers=dims["L"],
        pool_heads=dims["pool_heads"],
        frames=dims["T"],
        volumes=dims["n_out"],
    )


def sealed(draft: Draft, folder: Path) -> Any:
    draft.seal(folder, name="golden", licence="none", precision="float32")
    return open_pack(str(folder))


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_golden_import_of_mirage_encoding(shared: Path, tmp_path: Path, layout: str, suffix: str) -> None:
    golden, state = golden_of(shared, layout), weights(shared, layout)
    path = tmp_path / f"model.{suffix}"
    if suffix == "ckpt":
        inner = {f"model.{key}": value for key, value in state.items()}
        torch.save({"state_dict": inner, "epoch": 14, "global_step": 5, "optimizer_states": []}, path)
    else:
        save_file(state, path)
    draft = draft_mirage_encoding(sources(golden, path, version=VERSIONS[layout]))
    pack = sealed(draft, tmp_path / "pack")
    assert pack.described(MirageEncodingDescription).subjects == ["sub-01", "sub-02", "sub-03", "sub-05"]
    network = load(pack, "member_1", device="cpu", dtype=torch.float32)
    assert isinstance(network, FilmEncoder)
    features = [given(shared)[f"x.{name}"] for name in MODALITIES]
    everything = torch.ones(len(features[0]), len(MODALITIES))
    for name, values in zip(MODALITIES, features, strict=True):
        pooled = network.layer_poolers[name](values)
        close(golden, f"attn.{name}", pooled.attention.flatten(0, 1), MIRAGE)
        close(golden, f"pooled.{name}", pooled.values, MIRAGE)
        close(golden, f"proj.{name}", network.projectors[name](pooled.values), MIRAGE)
    fused, _ = network.fuse(tuple(features), everything)  # type: ignore[arg-type]
    close(golden, "fused", fused, MIRAGE)
    temporal = network.temporal_encoder(fused)
    close(golden, "temporal", temporal, MIRAGE)
    rows, subjects = torch.arange(len(fused)), torch.tensor(golden.info["subject_id"])
    close(golden, "head", network.head(temporal)[rows, subjects], MIRAGE)
    close(golden, "pred", network(*features, everything).predicted[rows, subjects], MIRAGE)
    silent = network(torch.zeros_like(features[0]), *features[1:], everything)
    close(golden, "pred_text_zero", silent.predicted[rows, subjects], MIRAGE)


@torch.no_grad()
def test_the_other_rotation_of_the_same_weights_gives_other_numbers(shared: Path, tmp_path: Path) -> None:
    """What tells the two old numerics apart is the version alone: hence it has to be said."""
    golden, path = golden_of(shared, "halfsplit"), tmp_path / "model.safetensors"
    save_file(weights(shared, "halfsplit"), path)
    features = [given(shared)[f"x.{name}"] for name in MODALITIES]
    found = {}
    for version in ("1.30.0", "1.31.0"):
        draft = draft_mirage_encoding(sources(golden, path, version=version))
        network = load(sealed(draft, tmp_path / version), "member_1", device="cpu", dtype=torch.float32)
        found[version] = network(*features, torch.ones(2, 3)).predicted[[0, 1], golden.info["subject_id"]].numpy()
    np.testing.assert_allclose(found["1.30.0"], golden.tensors["pred"], atol=MIRAGE, rtol=0)
    assert np.abs(found["1.31.0"] - golden.tensors["pred"]).max() > 1000 * MIRAGE


@pytest.mark.parametrize(
    ("layout", "version", "shift", "message"),
    [
        ("halfsplit", None, 0.0, r"the gains are near 1, .* 1\.30\.0 or older and 1\.30\.1 to 1\.31\.1 .*--x-transf"),
        ("halfsplit", "2.31.10", 0.0, r"expected gains near 0 of x-transformers 2\.31\.10, got a median of [01]\."),
        ("interleaved", "1.30.4", 0.0, r"expected gains near 1 of x-transformers 1\.30\.4, got a median of 0\."),
        ("interleaved", None, 0.5, r"expected gains near 0 .* or near 1 .*, got a median of 0\.[3-7]"),
        ("halfsplit", "newest", 0.0, r"expected a version such as 1\.31\.2, got 'newest'"),
    ],
)
def test_numerics_that_cannot_be_told_are_refused(
    shared: Path, tmp_path: Path, layout: str, version: str | None, shift: float, message: str
) -> None:
    state = weights(shared, layout)
    state = {key: value + shift if key.endswith(".g") else value for key, value in state.items()}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match=message):
        draft_mirage_encoding(sources(golden_of(shared, layout), path, version=version))


def test_a_missing_modality_is_left_out_where_the_training_leaves_it_out(shared: Path, tmp_path: Path) -> None:
    golden, path = golden_of(shared, "interleaved"), tmp_path / "model.safetensors"
    save_file(weights(shared, "interleaved"), path)
    draft = draft_mirage_encoding(sources(golden, path, version=None))
    network = load(sealed(draft, tmp_path / "pack"), "member_1", device="cpu", dtype=torch.float32)
    features = [given(shared)[f"x.{name}"] for name in MODALITIES]
    keep = torch.tensor([[0.0, 1, 1]]).expand(2, -1)
    with torch.no_grad():
        fused, _ = network.fuse(tuple(features), keep)
        expected = torch.from_numpy(golden.tensors["fused"]).clone()
        expected[..., : golden.tensors["proj.text"].shape[-1]] = 0
        torch.testing.assert_close(fused, expected, atol=MIRAGE, rtol=0)
        found = network(*features, keep).predicted
        other = network(torch.randn_like(features[0]), *features[1:], keep).predicted
    torch.testing.assert_close(found, other)  # what the features of a missing modality hold does not matter
    chosen = found[[0, 1], golden.info["subject_id"]].numpy()
    assert np.abs(chosen - golden.tensors["pred_text_zero"]).max() > 100 * MIRAGE


def test_the_published_shape_has_the_published_number_of_parameters() -> None:
    state = empty("film_encoder", {}).state_dict()
    assert len(state) == 134
    assert sum(value.numel() for value in state.values()) == 1_123_105_809


def test_averaging_to_volumes_is_torchs_adaptive_one() -> None:
    for frames, volumes in ((298, 100), (37, 13), (7, 7), (3, 5)):
        values = torch.randn(2, 4, frames)
        expected = torch.nn.AdaptiveAvgPool1d(volumes)(values)
        torch.testing.assert_close(values @ averaging(frames, volumes).T, expected)


def test_every_key_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    golden, path = golden_of(shared, "interleaved"), tmp_path / "model.safetensors"
    state = weights(shared, "interleaved")
    save_file(state | {"head.extra": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected head\.extra \(2,\)"):
        draft_mirage_encoding(sources(golden, path, version=None))
    state.pop("head.bias_param")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing head\.bias_param \(4, 7\)"):
        draft_mirage_encoding(sources(golden, path, version=None))


def gnet_file(golden: Golden, path: Path, *, arrays: bool) -> Path:
    """As published: a pickle of nested mappings with arrays of numpy or torch."""
    content = {key[2:]: value for key, value in golden.tensors.items() if key.startswith("w.")}

    def part(prefix: str) -> dict[str, Any]:
        found = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
        return {k: torch.from_numpy(v.astype(np.float32) if v.dtype == np.float16 else v) for k, v in found.items()}

    readout = {key: value.numpy() if arrays else value for key, value in part("fwrf.").items()}
    other = {key: value * 2 for key, value in readout.items()}
    params = {"enc": part("enc."), "fwrfs": {1: readout, 5: other}}
    saved = {"best_params": params, "val_cc": {1: np.ones(6, np.float32)} if arrays else {}, "input_mean": None}
    torch.save(saved, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("arrays", [True, False])
def test_golden_import_of_gnet(shared: Path, tmp_path: Path, arrays: bool) -> None:
    golden = read(shared / "golden" / "gnet_small.json")
    draft = draft_gnet(str(gnet_file(golden, tmp_path / "gnet_multisubject.pt", arrays=arrays)))
    pack = sealed(draft, tmp_path / "pack")
    assert pack.description.participants == [1, 5]
    network = load(pack, "gnet", device="cpu", dtype=torch.float32)
    assert isinstance(network, GNet)
    pictures = torch.from_numpy(golden.tensors["x_uint8"]).float() / 255
    first, second = network.enc(pictures)
    close(golden, "fmap0.mean", first.mean((2, 3)), GNET)
    close(golden, "fmap1.mean", second.mean((2, 3)), GNET)
    close(golden, "fmap1", second, MAP)
    close(golden, "y", network(pictures)[0], GNET)


def test_only_the_participants_asked_for_are_kept(shared: Path, tmp_path: Path) -> None:
    path = gnet_file(read(shared / "golden" / "gnet_small.json"), tmp_path / "gnet.pt", arrays=True)
    assert draft_gnet(str(path), participants=[5]).stages["gnet"].sizes["voxels"] == [6]
    with pytest.raises(CheckpointError, match=r"expected participants of \[1, 5\], got \[2\]"):
        draft_gnet(str(path), participants=[1, 2])


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"best_params": {"enc": Path("x")}}, tmp_path / "gnet.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        draft_gnet(str(tmp_path / "gnet.pt"))


@torch.no_grad()
def test_gnet_describes_pictures_by_what_its_participants_share(shared: Path, tmp_path: Path) -> None:
    golden = read(shared / "golden" / "gnet_small.json")
    pack = sealed(draft_gnet(str(gnet_file(golden, tmp_path / "gnet.pt", arrays=True))), tmp_path / "pack")
    pictures = (golden.tensors["x_uint8"] / 255).astype(np.float32)
    found = embedded(pack, pictures)
    network = load(pack, "gnet", device="cpu", dtype=torch.float32)
    maps = [one.numpy() for one in network.enc(torch.from_numpy(pictures))]
    maps = [np.log1p(np.abs(one)) * np.tanh(one) for one in maps]
    assert found.shape == (len(pictures), 25, sum(one.shape[1] for one in maps))
    for row, column in ((0, 0), (2, 3), (4, 4)):
        expected = []
        for one in maps:
            side = one.shape[-1]
            down, right = (slice(n * side // 5, -(-(n + 1) * side // 5)) for n in (row, column))
            expected.append(one[:, :, down, right].mean((2, 3)))
        np.testing.assert_allclose(found[:, 5 * row + column], np.concatenate(expected, 1), atol=1e-5)


def test_a_session_does_not_take_a_pack_that_encodes(shared: Path, tmp_path: Path) -> None:
    draft = draft_gnet(str(gnet_file(read(shared / "golden" / "gnet_small.json"), tmp_path / "gnet.pt", arrays=True)))
    pack = sealed(draft, tmp_path / "pack")
    from rtdecode.decode.loading import load_decoder

    with pytest.raises(EngineError, match="expected a pack that decodes, got one of kind gnet"):
        load_decoder(pack, DecodeSettings(pack=str(pack.folder)))
