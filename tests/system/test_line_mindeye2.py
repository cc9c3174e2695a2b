"""The whole line with a MindEye2 pack of random networks: map, embeddings, calibration within the visit, pictures."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.check import Checked, check
from rtdecode.clock import SystemClock
from rtdecode.settings import parse
from rtdecode.simulate import world
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, Recorder, run_visit

DECODED = [t for t in PLAN.trials if t.run > PLAN.calibration_runs]
STAGES = ("ridge", "backbone", "prior", "converter", "captioner", "unclip", "autoencoder", "embedder")
VOXELS = 96
N_PICTURES = 160


def run(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack whose map was learned from a participant who saw pictures of the same world, none of the visit's."""
    folder = tmp_path_factory.mktemp("packs")
    rng = np.random.default_rng(99)
    (folder / "pictures").mkdir()
    for i in range(N_PICTURES):
        Image.fromarray(world.render(world.sample_scene(rng))[0]).save(folder / "pictures" / f"p{i:03d}.png")
    run("engines", "fake", "mindeye2", "--dims", "small", "--stages", *STAGES, "--out", folder / "random")
    run("engines", "embed", folder / "pictures", "--pack", folder / "random", "--out", folder / "tokens.safetensors")
    tokens = load_file(folder / "tokens.safetensors")["tokens"].reshape(N_PICTURES, -1).astype(np.float64)
    picture = np.tile(np.arange(N_PICTURES), 2)
    betas = ((tokens - tokens.mean(0)) @ rng.standard_normal((tokens.shape[1], VOXELS)))[picture]
    betas = betas / betas.std(0) + rng.standard_normal(betas.shape)
    save_file({"betas": betas.astype(np.float32), "picture": picture}, folder / "betas.safetensors")
    data = ("--pictures", folder / "tokens.safetensors", "--participant", f"0={folder / 'betas.safetensors'}")
    run("engines", "latents", folder / "random", *data, "--out", folder / "mapped")
    return folder / "mapped"


@pytest.fixture(scope="module")
def visit(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    out = tmp_path_factory.mktemp("visit")
    PLAN.write_stimuli(out / "stimuli")
    categories = {trial.stimulus: trial.condition for trial in PLAN.trials}
    (out / "stimuli" / "categories.json").write_text(json.dumps(categories))
    run("engines", "embed", out / "stimuli", "--pack", pack)
    decode = {"pack": str(pack), "prior_steps": 3, "unclip_steps": 2}
    return run_visit(out, FakeClock(), decode=decode)


def test_every_trial_is_decoded_with_every_part(visit: tuple[Recorder, Path]) -> None:
    recorder, _ = visit
    assert not recorder.of(wire.Skipped)
    for kind in (wire.Embedding, wire.Score, wire.Caption, wire.Reconstruction):
        assert [m.trial for m in recorder.of(kind) if m.final] == [t.trial for t in DECODED]
    session = recorder.of(wire.Session)[-1]
    assert session.categories == tuple(sorted(world.CATEGORIES))
    assert session.absent == ()
    picture = recorder.of(wire.Reconstruction)[-1]
    with Image.open(io.BytesIO(picture.image)) as image:
        assert image.size == (picture.width, picture.height)
    tokens = recorder.of(wire.Embedding)[-1].tokens
    assert (tokens.dtype, tokens.shape) == ("<f2", (16, 104))


def test_what_was_decoded_can_be_evaluated(
    visit: tuple[Recorder, Path], pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = visit
    run("evaluate", folder, "--images", folder.parent / "stimuli", "--pack", pack, "--out", tmp_path)
    said = capsys.readouterr().out
    assert "image retrieval, top-1 of 16" in said
    assert "embedder, two-way" in said


def test_a_later_visit_is_checked_before_it_starts(visit: tuple[Recorder, Path], pack: Path, tmp_path: Path) -> None:
    _, folder = visit
    (tmp_path / "export").mkdir()
    shutil.copytree(folder.parent / "stimuli", tmp_path / "stimuli")
    raw = {
        "session": {"participant": "sim", "session": "02", "output": "sessions"},
        "scanner": {"export_dir": "export"},
        "decode": {"pack": str(pack), "stimuli": "stimuli", "bundle": str(folder / "bundle"), "unclip_steps": 1},
    }

    def found() -> dict[str, Checked]:
        return {one.subject: one for one in check(parse(raw, root=tmp_path), SystemClock())}

    well = found()
    assert well["participant bundle"].problem == ""
    assert well["engines and stimuli"].detail == f"ready: {len(PLAN.trials)} stimuli of 8 categories"
    told = (tmp_path / "stimuli" / "categories.json").read_text()
    (tmp_path / "stimuli" / "categories.json").write_text(told.replace("shoe", "boot"))
    assert "calibrated to tell" in found()["participant bundle"].problem
