"""`engines train` and `engines distill` on small packs, from files to a sealed pack."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description, Student
from rtdecode.packs.description import PackDescription, TokenTable
from tests.packs import part

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from engines import cli  # noqa: E402
from engines.distill import imported_packs as published  # noqa: E402
from engines.distill.consistency import Distillation  # noqa: E402
from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from engines.sealed_copies import seal_copy  # noqa: E402
from engines.training.loop import Fitted  # noqa: E402
from rtdecode.decode.families.mindeye2.torch_stages import load_stages  # noqa: E402
from rtdecode.decode.sampling.edm import OFFSET_NOISE  # noqa: E402
from rtdecode.errors import EngineError, TrainingError  # noqa: E402
from rtdecode.packs import open_pack  # noqa: E402
from tests.training_small import write_distilling, write_settings, write_training  # noqa: E402


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["engines", *map(str, words)])
    code: int = args.handler(args)
    return code


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    write_training(tmp_path)
    return write_settings(tmp_path / "training.toml")


def test_train_seals_a_pack_of_ridge_backbone_and_prior(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = settings.parent / "own"
    assert run("train", settings, "--out", out, "--licence", "ours") == 0
    pack = open_pack(str(out))
    assert f"sealed as {pack.identity}" in capsys.readouterr().out
    assert set(pack.description.stages) == {"ridge", "backbone", "prior"}
    assert pack.description.stage("ridge").sizes["voxels"] == [9, 7]
    assert pack.description.tokens == TokenTable(count=2, channels=8)
    assert not any("mixer" in key for key in load_file(out / "backbone.safetensors"))
    again = settings.parent / "again"
    assert run("train", settings, "--out", again, "--licence", "ours") == 0
    for stage in ("ridge", "backbone", "prior"):
        first, second = (load_file(folder / f"{stage}.safetensors") for folder in (out, again))
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_train_names_what_is_wrong_with_its_files(settings: Path) -> None:
    out = settings.parent / "own"
    save_file({"betas": torch.zeros(3, 9)}, settings.parent / "sub-01.safetensors")
    with pytest.raises(TrainingError, match=r"sub-01.*wrong or missing: picture"):
        run("train", settings, "--out", out, "--licence", "ours")
    rows = torch.full((3,), 12)
    save_file({"betas": torch.zeros(3, 9), "picture": rows}, settings.parent / "sub-01.safetensors")
    with pytest.raises(
        TrainingError, match=r"expected rows of pictures\.safetensors, integers from 0 to 11, got .* from 12"
    ):
        run("train", settings, "--out", out, "--licence", "ours")
    settings.write_text("steps = 0", encoding="utf-8")
    with pytest.raises(TrainingError, match="steps"):
        run("train", settings, "--out", out, "--licence", "ours")


def test_a_training_goes_on_with_the_settings_it_was_begun_with(settings: Path) -> None:
    out = settings.parent / "own"
    assert run("train", settings, "--out", out, "--licence", "ours") == 0
    for changed, told in (
        ({"batch": 5}, "details.batch: expected 5, got 4"),
        ({"seed": 2}, "seed: expected 2, got 0"),
        ({"weights": {"anchor": 2.0}}, "details.weights.anchor: expected 2.0, got 1.0"),
        ({"participants": ["sub-02.safetensors", "sub-01.safetensors"]}, "details.participants: expected"),
    ):
        write_settings(settings, **changed)
        with pytest.raises(TrainingError, match=re.escape(f"a checkpoint of another training ({told}")):
            run("train", settings, "--out", out, "--licence", "ours", "--resume")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fake") / "pack"
    write_fake_mindeye2(out, dims="small", stages=("ridge", "backbone", "prior", "unclip"), precision="float32")
    return out


@pytest.mark.parametrize("stage", ["prior", "unclip"])
def test_a_student_takes_its_teachers_place_in_a_copy_of_the_pack(stage: Student, fake: Path, tmp_path: Path) -> None:
    pack = open_pack(str(fake))
    tokens, dim = pack.description.tokens.count, pack.description.tokens.channels
    out = tmp_path / "student"
    pictures, trials = write_distilling(tmp_path, fake)
    words = ["distill", stage, fake, *pictures, *(trials if stage == "prior" else []), "--out", out, "--lose", 100]
    assert run(*words, "--steps", 3, "--batch", 2, "--rate", "1e-3") == 0
    made = open_pack(str(out))
    assert made.described(MindEye2Description).distilled[stage].teacher == pack.identity
    assert made.description.stages == pack.description.stages
    before, after = (load_file(folder / f"{stage}.safetensors") for folder in (fake, out))
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    untouched = "backbone.safetensors"
    assert (fake / untouched).read_bytes() == (out / untouched).read_bytes()
    for changed, told in (
        (["--guidance", 7], "details.guidance: expected 7.0"),
        (["--skip", 2], "details.skip: expected 2, got"),
        (["--rate", "2e-3"], "rate: expected 0.002, got 0.001"),
    ):
        with pytest.raises(TrainingError, match=re.escape(f"another training ({told}")):
            run(*words, "--steps", 3, "--batch", 2, "--rate", "1e-3", "--resume", *changed)
    if stage == "unclip":
        assert load_file(out / "unconditional.safetensors")["unconditional"].shape == (tokens, dim)


def test_the_prior_is_conditioned_on_what_the_backbone_makes_of_a_trial_that_showed_the_picture(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, trials = write_distilling(tmp_path, fake)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(student: torch.nn.Module, batches: Any, **_: Any) -> Any:
        seen.extend(batches(torch.Generator().manual_seed(seed)) for seed in range(3))
        return student, Fitted(seconds=0.0, skipped=0)

    monkeypatch.setattr(published, "distil", watched)
    assert (
        run("distill", "prior", fake, *pictures, *trials, "--out", tmp_path / "out", "--batch", 4, "--lose", 100) == 0
    )
    stages = load_stages(open_pack(str(fake)))
    weight, bias = stages.ridge
    tokens = load_file(tmp_path / "shown.safetensors")["tokens"]
    betas = load_file(tmp_path / "trials.safetensors")["betas"].numpy()
    expected = stages.backbone(torch.from_numpy(betas @ weight.T + bias)).tokens
    for shown, condition in seen:
        for one, made in zip(shown, condition, strict=True):
            picture = int((tokens - one).abs().sum((1, 2)).argmin())
            assert torch.equal(tokens[picture], one)
            twice = (picture, picture + len(tokens))
            assert min(float((expected[trial] - made).abs().max()) for trial in twice) < 1e-5


def test_the_unclip_learns_from_tokens_that_the_prior_makes_of_trials_too(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, trials = write_distilling(tmp_path, fake)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hows: list[Distillation] = []

    def watched(student: torch.nn.Module, batches: Any, how: Distillation, **_: Any) -> Any:
        seen.append(batches(torch.Generator().manual_seed(0)))
        hows.append(how)
        return student, Fitted(seconds=0.0, skipped=0)

    monkeypatch.setattr(published, "distil", watched)
    for given, name in (([], "true"), (trials, "decoded")):
        assert (
            run("distill", "unclip", fake, *pictures, *given, "--out", tmp_path / name, "--batch", 4, "--lose", 100)
            == 0
        )
    shown = load_file(tmp_path / "shown.safetensors")
    (latents, tokens), (mixed, given) = seen
    assert {how.offset for how in hows} == {OFFSET_NOISE}

    def row(name: str, one: torch.Tensor) -> int:
        return int((shown[name] - one).flatten(1).abs().sum(1).argmin())

    for latent, token in zip(latents, tokens, strict=True):
        assert row("latent", latent) == row("tokens", token)
        assert torch.equal(shown["tokens"][row("tokens", token)], token)
    for place, (latent, token) in enumerate(zip(mixed, given, strict=True)):
        assert torch.equal(shown["latent"][row("latent", latent)], latent)
        true = torch.equal(shown["tokens"][row("latent", latent)], token)
        assert true == (place < 2)  # the others are what a prior samples of that picture's trials
    assert torch.isfinite(given).all()


def test_data_of_another_layout_and_packs_without_weights_are_refused(fake: Path, tmp_path: Path) -> None:
    pictures, trials = write_distilling(tmp_path, fake)
    out = ["--out", tmp_path / "out"]
    words = [*pictures, *trials, *out]
    with pytest.raises(TrainingError, match="expected a stage prior with safetensors weights"):
        run("distill", "prior", "tiny", *words)
    with pytest.raises(EngineError, match="expected a participant from 0 to 0, got 1"):
        run("distill", "prior", fake, *words, "--participant", f"1={tmp_path / 'trials.safetensors'}")
    save_file({"betas": torch.zeros(2, 3), "picture": torch.zeros(2).long()}, tmp_path / "trials.safetensors")
    with pytest.raises(TrainingError, match=r"betas: expected rows of shape \(96,\)"):
        run("distill", "prior", fake, *words)
    save_file({"tokens": torch.zeros(2, 3, 5), "latent": torch.zeros(2, 4, 8, 8)}, tmp_path / "shown.safetensors")
    for stage, given in (("prior", words), ("unclip", [*pictures, *out])):
        with pytest.raises(TrainingError, match="tokens: expected rows of shape"):
            run("distill", stage, fake, *given)


def test_a_student_does_not_inherit_its_teachers_exported_files(fake: Path, tmp_path: Path) -> None:
    def export(folder: Path) -> PackDescription:
        (folder / "prior.onnx").write_bytes(b"the teacher")
        return replace(open_pack(str(fake)).description, parts={"prior": part("prior.onnx")})

    seal_copy(open_pack(str(fake)), tmp_path / "exported", export)
    pictures, trials = write_distilling(tmp_path, fake)
    words = (*pictures, *trials, "--out", tmp_path / "student", "--steps", 2, "--batch", 2, "--lose", 100)
    assert run("distill", "prior", tmp_path / "exported", *words) == 0
    made = open_pack(str(tmp_path / "student"))
    assert not made.description.parts
    assert not list(made.folder.glob("*.onnx"))
