"""Recorded betas through `rtdecode evaluate`: repeats, tasks, and both ways of counting, against plain numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rtdecode.__main__ import main
from rtdecode.decode.families import family
from rtdecode.decode.families.family import DecodedRecord, record_decoder
from rtdecode.decode.resample import bilinear
from rtdecode.errors import EngineError
from rtdecode.packs import open_pack

VOXELS, REPEATS = 3 * 8 * 8, 4
NAMES = [f"A{i}" for i in range(6)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), 0).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def shown(images: Path, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(images / f"{name}.png").resize((8, 8), 0), np.float32)


def save_betas(path: Path, images: Path) -> None:
    """Betas whose mean over a stimulus's trials is its picture, better when it is seen than when it is imagined."""
    rng, rows, stimuli, tasks = np.random.default_rng(1), [], [], []
    for task, noise in (("vision", 20.0), ("imagery", 120.0)):
        for name in [*NAMES, "C7"]:  # of the last there is no picture
            truth = shown(images, name).ravel() if name in NAMES else np.zeros(VOXELS, np.float32)
            for _ in range(3):
                rows.append(truth + noise * rng.standard_normal(VOXELS))
                stimuli.append(name)
                tasks.append(task)
    order = rng.permutation(len(rows))
    said = {"stimuli": json.dumps([stimuli[i] for i in order]), "tasks": json.dumps([tasks[i] for i in order])}
    save_file({"betas": np.stack(rows)[order].astype(np.float32)}, path, metadata=said)


def decode(betas: np.ndarray[Any, Any], seed: int) -> DecodedRecord:
    """The mean of the betas as a picture, with noise of the seed."""
    noise = 30 * np.random.default_rng(seed).standard_normal(VOXELS)
    picture = np.clip(betas.mean(0) + noise, 0, 255).reshape(8, 8, 3).astype(np.uint8)
    return DecodedRecord(picture=picture, caption="", tokens=None)


def test_each_task_has_its_table_of_all_repeats(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(family, "record_decoder", lambda pack: decode)
    save_betas(tmp_path / "betas.safetensors", images)
    command = ["evaluate", "--betas", str(tmp_path / "betas.safetensors"), "--images", str(images), "--pack", "tiny"]
    assert main([*command, "--repeats", str(REPEATS), "--legacy"]) == 0
    said = capsys.readouterr().out
    assert "C7: no picture" in said
    found = {}
    for task in ("vision", "imagery"):
        content = json.loads((tmp_path / "evaluation" / task / "evaluation.json").read_text())
        assert content["trials"] == len(NAMES)
        found[task] = {one["name"]: one for one in content["figures"]}
        plain, legacy = (found[task][f"pack's embedder, two-way{more}"] for more in ("", ", legacy"))
        assert plain["value"] - legacy["value"] == pytest.approx(1 / (len(NAMES) - 1))
        assert (plain["chance"], legacy["chance"]) == (0.5, pytest.approx(0.5 - 1 / (len(NAMES) - 1)))
    assert found["vision"]["PixCorr"]["value"] > found["imagery"]["PixCorr"]["value"] + 0.1

    # The oracle: pictures of the task's own trials, drawn by the seeds of the repeats, correlated one by one.
    monkeypatch.undo()
    from rtdecode.evaluate.recorded_betas import decoded_pairs, read_recorded

    vision, imagery = read_recorded(tmp_path / "betas.safetensors", images)
    assert (vision.task, imagery.task) in {("vision", "imagery"), ("imagery", "vision")}
    one = vision if vision.task == "vision" else imagery
    assert all(len(betas) == 3 for betas in one.betas)
    values = []
    for pairs in decoded_pairs(one, decode, repeats=REPEATS):
        for place, name in enumerate(pairs.stimuli):
            whole = np.asarray(Image.open(images / f"{name}.png"), np.float32).transpose(2, 0, 1) / 255
            np.testing.assert_allclose(pairs.true[place], bilinear(whole, 256), atol=1e-6)
        enlarged = [
            (bilinear(a, 425).ravel(), bilinear(b, 425).ravel()) for a, b in zip(pairs.true, pairs.made, strict=True)
        ]
        values.append([np.corrcoef(a, b)[0, 1] for a, b in enlarged])
    assert np.mean(values) == pytest.approx(found["vision"]["PixCorr"]["value"], abs=1e-6)
    assert len({one[0] for one in values}) == REPEATS  # each repeat with noise of its own


def test_what_cannot_be_decoded_is_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "betas.safetensors"
    command = ["evaluate", "--betas", str(path), "--images", str(images)]
    for stimuli, tasks, problem in (
        (NAMES, [], "got (7, 5), 6 and 7"),
        (["A1"] * 7, ["../up"] * 7, "expected names of letters"),
        (["A1"] * 7, [], "expected at least 3 stimuli with a picture, got 1"),
    ):
        said = {"stimuli": json.dumps(stimuli), "tasks": json.dumps(tasks)}
        save_file({"betas": np.zeros((7, 5), np.float32)}, path, metadata=said)
        assert main([*command, "--pack", "tiny"]) == 2
        assert problem in capsys.readouterr().err
    assert main(command) == 2
    assert "--betas goes with --pack" in capsys.readouterr().err
    assert main(["evaluate", "--images", str(images)]) == 2
    assert "expected either a session folder or --betas FILE" in capsys.readouterr().err
    with pytest.raises(EngineError, match="decodes by a session's calibration alone"):
        record_decoder(open_pack("tiny"))
