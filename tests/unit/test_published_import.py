"""Published files into packs: nothing missing, nothing unexpected, nothing silently left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.importing.mindeye1_files import MindEye1Files, draft_mindeye1
from engines.importing.mindeye2_files import MindEye2Files, draft_mindeye2
from engines.importing.weight_files import locate, read
from rtdecode.__main__ import main
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.networks.backbone import BackboneShape
from rtdecode.errors import BundleError, CheckpointError
from rtdecode.packs import open_pack
from rtdecode.packs.description import PACK_SCHEMA, TokenTable, write_description
from rtdecode.packs.sealed import seal
from tests.packs import description
from tests.published import (
    State,
    git_folder,
    mindeye2_state,
    old_names,
    random_state,
    refiner_state,
    save_last,
    save_unclip,
    sizes_of,
    stripped,
    unclip_state,
)


@pytest.fixture(scope="module")
def small() -> State:
    return mindeye2_state(voxels=[7, 9, 8])


def imported(tmp_path: Path, state: State, **options: Any) -> Any:
    return draft_mindeye2(MindEye2Files(weights=str(save_last(tmp_path / "last.pth", state))), **options)


def test_every_stage_is_imported_with_the_values_of_its_file(tmp_path: Path, small: State) -> None:
    unclip, made = unclip_state()
    refiner, more = refiner_state()
    made |= more
    made["blurry_autoencoder"] = random_state("autoencoder", sizes_of("blurry_autoencoder"), 8)
    made["small_autoencoder"] = random_state("small_autoencoder", sizes_of("small_autoencoder"), 10)
    encoder = {"encoder.layers.0.weight": torch.zeros(3)}
    save_file(made["small_autoencoder"] | encoder, tmp_path / "taesdxl.safetensors")
    made["converter"] = random_state("converter", sizes_of("converter"), 9)
    blurry = tmp_path / "sd_image_var_autoenc.pth"
    torch.save(old_names(stripped(made["blurry_autoencoder"], "vae.")), blurry)
    save_unclip(tmp_path / "unclip.ckpt", unclip)
    save_file({key: value.contiguous() for key, value in refiner.items()}, tmp_path / "refiner.safetensors")
    command = ["engines", "import", "mindeye2", "--out", str(tmp_path / "pack"), "--licence", "test"]
    files = {
        "weights": save_last(tmp_path / "last.pth", small),
        "converter": save_last(tmp_path / "bigG_to_L_epoch8.pth", made["converter"]),
        "captioner": git_folder(tmp_path / "git"),
        "unclip": tmp_path / "unclip.ckpt",
        "blurry-autoencoder": blurry,
        "refiner": tmp_path / "refiner.safetensors",
        "small-autoencoder": tmp_path / "taesdxl.safetensors",
    }
    assert main(command + [word for name, path in files.items() for word in (f"--{name}", str(path))]) == 0
    assert main(["engines", "verify", str(tmp_path / "pack")]) == 0
    pack = open_pack(str(tmp_path / "pack"))
    said = pack.described(MindEye2Description)
    assert said.tokens == TokenTable(count=16, channels=104)
    for stage, state in made.items():
        got = load_file(pack.folder / f"{stage}.safetensors")
        assert got.keys() == state.keys(), stage
        for key, value in state.items():
            assert torch.equal(got[key], value), key
    dropped = {key for entry in said.dropped for key in entry.keys}
    assert {
        "optimizer_state_dict",
        "denoiser.sigmas",
        "git.embeddings.position_ids",
        "encoder.layers.0.weight",
    } <= dropped
    assert {key for key in small if ".mixer_blocks" in key} <= dropped
    kept = {f"ridge.{key}" for key in load_file(pack.folder / "ridge.safetensors")}
    assert kept == {key for key in small if key.startswith("ridge.")}


def test_every_key_of_the_file_is_in_a_stage_or_listed_as_left_out(tmp_path: Path, small: State) -> None:
    draft = imported(tmp_path, small, participants=[2])
    names = {"ridge": "ridge.", "backbone": "backbone.", "prior": "diffusion_prior.net."}
    taken = {names[stage] + key for stage, content in draft.stages.items() for key in content.state}
    left_out = [key for reasons in draft.dropped.values() for keys in reasons.values() for key in keys]
    renumbered = {key.replace("ridge.linears.0.", "ridge.linears.2.") for key in taken}
    training = {"epoch", "optimizer_state_dict", "lr_scheduler", "train_losses", "lrs"}
    assert sorted(left_out) == sorted((small.keys() | training) - renumbered)
    assert torch.equal(draft.stages["ridge"].state["linears.0.weight"], small["ridge.linears.2.weight"])
    assert draft.tables["participants"] == [2]


@pytest.mark.parametrize(
    "key",
    [
        "ridge.linears.1.bias",
        "backbone.backbone_linear.weight",
        "backbone.mixer_blocks1.2.1.3.weight",
        "backbone.mixer_blocks2.0.0.bias",
        "backbone.bupsampler.conv_in.weight",
        "diffusion_prior.net.learned_query",
        "diffusion_prior.net.causal_transformer.layers.0.0.to_q.weight",
        "diffusion_prior.noise_scheduler.posterior_mean_coef2",
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, small: State, key: str) -> None:
    state = {name: value for name, value in small.items() if name != key}
    short = key.removeprefix("ridge.").removeprefix("backbone.").removeprefix("diffusion_prior.net.")
    with pytest.raises(CheckpointError, match=rf"(?s)missing .*{re.escape(short)}"):
        imported(tmp_path, state)


@pytest.mark.parametrize(
    "key", ["surprise", "ridge.linears.1.extra", "backbone.surprise.weight", "diffusion_prior.net.surprise"]
)
def test_an_unexpected_key_is_named(tmp_path: Path, small: State, key: str) -> None:
    short = key.removeprefix("ridge.").removeprefix("backbone.").removeprefix("diffusion_prior.net.")
    with pytest.raises(CheckpointError, match=rf"unexpected .*{re.escape(short)}"):
        imported(tmp_path, small | {key: torch.zeros(3)})


def test_a_key_is_ignored_only_when_the_user_names_it(tmp_path: Path, small: State) -> None:
    draft = imported(tmp_path, small | {"surprise.a": torch.zeros(3)}, ignored=[r"surprise\..*"])
    assert ["surprise.a"] in list(draft.dropped["last.pth"].values())
    with pytest.raises(CheckpointError, match="surprise"):
        imported(tmp_path, small | {"surprise.a": torch.zeros(3)}, ignored=["surprise"])


def test_a_tensor_of_another_shape_is_named(tmp_path: Path, small: State) -> None:
    key = "diffusion_prior.net.causal_transformer.norm.g"
    with pytest.raises(CheckpointError, match=r"causal_transformer\.norm\.g: expected \(104,\), got \(5,\)"):
        imported(tmp_path, small | {key: torch.ones(5)})


def test_another_noise_schedule_is_refused(tmp_path: Path, small: State) -> None:
    key = "diffusion_prior.noise_scheduler.betas"
    with pytest.raises(CheckpointError, match=r"noise_scheduler\.betas is not the cosine schedule"):
        imported(tmp_path, small | {key: small[key] * 0.5})


def test_tokens_of_backbone_and_prior_must_agree(tmp_path: Path) -> None:
    shape = BackboneShape(hidden=16, tokens=12, dim=104, low_level=False)
    with pytest.raises(CheckpointError, match="12 x 104"):
        imported(tmp_path, mindeye2_state(voxels=[5], shape=shape))


def _lose(prefix: str) -> Callable[[State], State]:
    def edit(state: State) -> State:
        lost = next(key for key in sorted(state) if key.startswith(prefix))
        return {key: value for key, value in state.items() if key != lost}

    return edit


def _gain(key: str) -> Callable[[State], State]:
    return lambda state: state | {key: torch.zeros(2)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_lose("model.diffusion_model.time_embed"), "missing .*time_embed"),
        (_lose("model.diffusion_model.input_blocks.4.1.transformer_blocks"), "missing .*attentions"),
        (_lose("first_stage_model.decoder.mid"), "missing"),
        (_lose("conditioner.embedders.0.model.visual.transformer"), "missing .*resblocks"),
        (_gain("model.diffusion_model.surprise.weight"), "unexpected model.diffusion_model.surprise.weight"),
        (_gain("first_stage_model.surprise"), "unexpected first_stage_model.surprise"),
        (_gain("conditioner.embedders.0.model.visual.surprise"), "unexpected visual.surprise"),
        (_gain("model_ema.decay"), "unexpected keys: model_ema.decay"),
    ],
)
def test_faults_of_an_unclip_checkpoint_are_named(
    tmp_path: Path, small: State, edit: Callable[[State], State], message: str
) -> None:
    torch.save({"state_dict": edit(unclip_state()[0])}, tmp_path / "unclip.ckpt")
    weights = save_last(tmp_path / "last.pth", small)
    with pytest.raises(CheckpointError, match=message):
        draft_mindeye2(MindEye2Files(weights=str(weights), unclip=str(tmp_path / "unclip.ckpt")))


def test_a_file_that_needs_code_to_be_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    torch.save({"model_state_dict": {}, "callback": Hostile()}, tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        read(tmp_path / "last.pth")
    torch.save({"model_state_dict": {}, "hyper": SimpleNamespace(a=1)}, tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read(tmp_path / "last.pth")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("last.pth", "last.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            read(tmp_path / name)


def test_a_deepspeed_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "zero_to_fp32.py").touch()
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        draft_mindeye2(MindEye2Files(weights=str(tmp_path / "last")))


def test_a_name_that_is_nowhere_says_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="expected a path"):
        locate("/no/such/last.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="download it where there is a network"):
        locate("datasets/pscotti/mindeyev2:bigG_to_L_epoch8.pth")


def test_an_altered_pack_is_refused(tmp_path: Path, small: State) -> None:
    imported(tmp_path, small).seal(tmp_path / "pack", name="p", licence="test", precision="float16")
    path = tmp_path / "pack" / "prior.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"prior\.safetensors: content differs"):
        open_pack(str(tmp_path / "pack"))


def test_mindeye1_faults_are_named(tmp_path: Path) -> None:
    path = save_last(tmp_path / "last.pth", {"voxel2clip.lin0.0.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"missing lin0\.0\.weight"):
        draft_mindeye1(MindEye1Files(weights=str(path)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "key", ["ridge.linears.1.weight", "backbone.mixer_blocks1.0.0.weight", "diffusion_prior.net.learned_query"]
)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_tensor(
    key: str, value: float, tmp_path: Path, small: State
) -> None:
    bad = {k: v.clone() for k, v in small.items()}
    bad[key].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=rf"last.pth: {re.escape(key)}: .* 1 of"):
        imported(tmp_path, bad)


def test_a_number_beyond_half_precision_is_refused_there_only(tmp_path: Path, small: State) -> None:
    large = {k: v.clone() for k, v in small.items()}
    large["backbone.backbone_linear.weight"][1, 2] = 1e6
    draft = imported(tmp_path, large)
    with pytest.raises(
        CheckpointError, match=r"backbone: backbone_linear.weight: holds 1e\+06, .*float16 ends at 65504"
    ):
        draft.seal(tmp_path / "half", name="half", licence="x", precision="float16")
    assert not (tmp_path / "half").exists()
    for precision in ("bfloat16", "float32"):
        draft.seal(tmp_path / precision, name="x", licence="x", precision=precision)
        open_pack(str(tmp_path / precision))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_sealed_pack_with_a_number_that_is_none_is_found(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = torch.arange(1000, dtype=dtype)

    def write(folder: Path) -> None:
        write_description(folder, description())
        save_file(
            {"whole": torch.arange(5), "first": torch.ones(3, dtype=dtype), "layer": values}, folder / "w.safetensors"
        )

    seal(tmp_path / "right", PACK_SCHEMA, write)
    assert main(["engines", "verify", str(tmp_path / "right")]) == 0
    values[999] = float("inf")
    with pytest.raises(BundleError, match=r"w\.safetensors: layer holds NaN or inf"):
        seal(tmp_path / "pack", PACK_SCHEMA, write)
    assert not (tmp_path / "pack").exists()
    with monkeypatch.context() as older:
        older.setattr("rtdecode.packs.sealed.check_numbers", lambda folder: None)
        seal(tmp_path / "pack", PACK_SCHEMA, write)
    capsys.readouterr()
    assert main(["engines", "verify", str(tmp_path / "pack")]) != 0
    assert "w.safetensors: layer holds NaN or inf" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_wrappers_prefix_is_taken_off_and_said(prefix: str, tmp_path: Path, small: State) -> None:
    wrapped = imported(tmp_path, {prefix + key: value for key, value in small.items()})
    (tmp_path / "plain").mkdir()
    plain = imported(tmp_path / "plain", small)
    assert {k: v.sizes for k, v in wrapped.stages.items()} == {k: v.sizes for k, v in plain.stages.items()}
    for name, stage in plain.stages.items():
        for key, value in stage.state.items():
            torch.testing.assert_close(wrapped.stages[name].state[key], value, rtol=0, atol=0)
    wrapped.seal(tmp_path / "pack", name="x", licence="x", precision="float32")
    said = open_pack(str(tmp_path / "pack")).described(MindEye2Description).dropped
    assert any("DistributedDataParallel" in d.reason or "torch.compile" in d.reason for d in said)


def test_some_keys_of_a_wrapper_are_refused_in_words(tmp_path: Path, small: State) -> None:
    mixed = {("module." if key.startswith("ridge.") else "") + key: value for key, value in small.items()}
    with pytest.raises(CheckpointError, match=r"'module.', which DistributedDataParallel .*model.module.state_dict"):
        imported(tmp_path, mixed)


def test_a_checkpoint_without_a_ridge_says_so(tmp_path: Path, small: State) -> None:
    with pytest.raises(CheckpointError, match=r"missing ridge.linears.0.weight; it holds backbone"):
        imported(tmp_path, {key: value for key, value in small.items() if not key.startswith("ridge.")})
