"""`engines train` and `engines distill` on small packs, from files to a sealed pack."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import tomli_w

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from engines import cli  # noqa: E402
from engines.build import export_pack  # noqa: E402
from engines.distill import published  # noqa: E402
from engines.published.fake import write_fake_mindeye2  # noqa: E402
from engines.training.loop import Fitted  # noqa: E402
from rtdecode.bundle import open_pack  # noqa: E402
from rtdecode.decode.networks.stages import load_stages  # noqa: E402
from rtdecode.errors import EngineError, TrainingError  # noqa: E402

SMALL = {"hidden": 16, "blocks": 1, "low_level": False, "prior_depth": 1, "prior_heads": 1, "prior_dim_head": 16}


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["engines", *map(str, words)])
    code: int = args.handler(args)
    return code


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 2, 8, generator=draw)
    save_file({"tokens": tokens}, tmp_path / "pictures.safetensors")
    for name, voxels in (("sub-01", 9), ("sub-02", 7)):
        rows = torch.randint(12, (20,), generator=draw)
        betas = torch.randn(20, voxels, generator=draw)
        save_file({"betas": betas, "picture": rows}, tmp_path / f"{name}.safetensors")
    content = {
        "pictures": "pictures.safetensors",
        "participants": ["sub-01.safetensors", "sub-02.safetensors"],
        "steps": 6,
        "batch": 4,
        "model": SMALL,
        "weights": {"anchor": 1.0},
    }
    path = tmp_path / "training.toml"
    path.write_bytes(tomli_w.dumps(content).encode())
    return path


def test_train_seals_a_pack_of_ridge_backbone_and_prior(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = settings.parent / "own"
    assert run("train", settings, "--out", out, "--licence", "ours") == 0
    pack = open_pack(str(out))
    assert f"sealed as {pack.identity}" in capsys.readouterr().out
    assert set(pack.config["stages"]) == {"ridge", "backbone", "prior"}
    assert pack.config["stages"]["ridge"]["sizes"]["voxels"] == [9, 7]
    assert pack.config["tokens"] == {"count": 2, "channels": 8}
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


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fake") / "pack"
    write_fake_mindeye2(out, dims="small", stages=("ridge", "backbone", "prior", "unclip"), precision="float32")
    return out


def write_data(folder: Path, fake: Path, n: int = 6) -> list[object]:
    """Pictures and trials for a pack; returns the words that name them."""
    config = open_pack(str(fake)).config
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(n, config["tokens"]["count"], config["tokens"]["channels"], generator=draw)
    save_file({"tokens": tokens, "latent": torch.randn(n, 4, 8, 8, generator=draw)}, folder / "pictures.safetensors")
    (voxels,) = config["stages"]["ridge"]["sizes"]["voxels"]
    rows = torch.arange(2 * n) % n
    save_file({"betas": torch.randn(2 * n, voxels, generator=draw), "picture": rows}, folder / "trials.safetensors")
    return ["--pictures", folder / "pictures.safetensors", "--participant", f"0={folder / 'trials.safetensors'}"]


@pytest.mark.parametrize("stage", ["prior", "unclip"])
def test_a_student_takes_its_teachers_place_in_a_copy_of_the_pack(stage: str, fake: Path, tmp_path: Path) -> None:
    pack = open_pack(str(fake))
    tokens, dim = pack.config["tokens"]["count"], pack.config["tokens"]["channels"]
    out = tmp_path / "student"
    data = write_data(tmp_path, fake)
    words = ["distill", stage, fake, *(data if stage == "prior" else data[:2]), "--out", out]
    assert run(*words, "--steps", 3, "--batch", 2, "--rate", "1e-3") == 0
    made = open_pack(str(out))
    assert made.config["distilled"][stage]["teacher"] == pack.identity
    assert made.config["stages"] == pack.config["stages"]
    before, after = (load_file(folder / f"{stage}.safetensors") for folder in (fake, out))
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    untouched = "backbone.safetensors"
    assert (fake / untouched).read_bytes() == (out / untouched).read_bytes()
    if stage == "unclip":
        assert load_file(out / "unconditional.safetensors")["unconditional"].shape == (tokens, dim)


def test_the_prior_is_conditioned_on_what_the_backbone_makes_of_a_trial_that_showed_the_picture(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path, fake)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(student: torch.nn.Module, batches: Any, **_: Any) -> Any:
        seen.extend(batches(torch.Generator().manual_seed(seed)) for seed in range(3))
        return student, Fitted(seconds=0.0, skipped=0)

    monkeypatch.setattr(published, "distil", watched)
    assert run("distill", "prior", fake, *data, "--out", tmp_path / "out", "--batch", 4) == 0
    stages = load_stages(open_pack(str(fake)))
    weight, bias = stages.ridge
    tokens = load_file(tmp_path / "pictures.safetensors")["tokens"]
    betas = load_file(tmp_path / "trials.safetensors")["betas"].numpy()
    expected = stages.backbone(torch.from_numpy(betas @ weight.T + bias)).tokens
    for shown, condition in seen:
        for one, made in zip(shown, condition, strict=True):
            picture = int((tokens - one).abs().sum((1, 2)).argmin())
            assert torch.equal(tokens[picture], one)
            trials = (picture, picture + len(tokens))  # a picture was shown twice
            assert min(float((expected[trial] - made).abs().max()) for trial in trials) < 1e-5


def test_data_of_another_layout_and_packs_without_weights_are_refused(fake: Path, tmp_path: Path) -> None:
    words = [*write_data(tmp_path, fake), "--out", tmp_path / "out"]
    with pytest.raises(TrainingError, match="expected a stage prior with safetensors weights"):
        run("distill", "prior", "tiny", *words)
    with pytest.raises(EngineError, match="expected a participant from 0 to 0, got 1"):
        run("distill", "prior", fake, *words, "--participant", f"1={tmp_path / 'trials.safetensors'}")
    save_file({"betas": torch.zeros(2, 3), "picture": torch.zeros(2).long()}, tmp_path / "trials.safetensors")
    with pytest.raises(TrainingError, match=r"betas: expected rows of shape \(96,\)"):
        run("distill", "prior", fake, *words)
    save_file({"tokens": torch.zeros(2, 3, 5), "latent": torch.zeros(2, 4, 8, 8)}, tmp_path / "pictures.safetensors")
    for stage, given in (("prior", words), ("unclip", [*words[:2], *words[4:]])):
        with pytest.raises(TrainingError, match="tokens: expected rows of shape"):
            run("distill", stage, fake, *given)


def test_a_student_does_not_inherit_its_teachers_exported_files(tmp_path: Path) -> None:
    needed = ("ridge", "backbone", "prior")
    write_fake_mindeye2(tmp_path / "weights", dims="small", stages=needed, precision="float32")
    export_pack(open_pack(str(tmp_path / "weights")), tmp_path / "exported", precision="float32", report=lambda _: None)
    pack = open_pack(str(tmp_path / "exported"))
    words = (*write_data(tmp_path, pack.folder), "--out", tmp_path / "student", "--steps", 2, "--batch", 2)
    assert run("distill", "prior", pack.folder, *words) == 0
    made = open_pack(str(tmp_path / "student"))
    assert "parts" not in made.config
    assert not list(made.folder.glob("*.onnx"))
