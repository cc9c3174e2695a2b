"""The how-to "a decoder family": one new folder in a package of its own, and nothing changed here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import rtdecode
from calibration.calibrator import Calibrator, write_bundle
from rtdecode.__main__ import main
from rtdecode.decode import load_candidates
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import Embedding, Reconstruction
from rtdecode.errors import EngineError
from rtdecode.records import BetaUpdate, Stamp, TrialEvent
from rtdecode.settings import DecodeSettings
from rtdecode.testing import check_family
from tests.examples import EXAMPLES, install

SIDE = 16
N_VOXELS = 80


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "site").mkdir()
    made = install("decoder_family", tmp_path / "site", monkeypatch)
    made.write_pack(tmp_path / "pack", side=SIDE)
    rng = np.random.default_rng(0)
    (tmp_path / "stimuli").mkdir()
    up, across = np.mgrid[:SIDE, :SIDE] / SIDE
    for kind, pattern in (("stripes", np.sin(9 * across)), ("bars", np.sin(9 * up)), ("blob", -((up - 0.5) ** 2))):
        for i in range(16):
            picture = pattern / np.abs(pattern).max() + 0.4 * rng.standard_normal() * up + 0.4 * rng.standard_normal()
            grey = np.uint8(np.clip(127 + 60 * picture, 0, 255))
            Image.fromarray(grey).save(tmp_path / "stimuli" / f"{kind}_{i:02d}.png")
    return made


def test_the_example_is_a_family_like_any_other(family: ModuleType, tmp_path: Path) -> None:
    check_family(family.FAMILY, rtdecode.open_pack(str(tmp_path / "pack")), tmp_path / "stimuli")
    folders = [path for path in (EXAMPLES / "decoder_family").iterdir() if path.is_dir() and path.name[0] != "_"]
    assert [folder.name for folder in folders] == ["five_ridges"]


def test_a_participant_is_calibrated_and_decoded_in_a_worker(family: ModuleType, tmp_path: Path) -> None:
    pack, stimuli = rtdecode.open_pack(str(tmp_path / "pack")), tmp_path / "stimuli"
    candidates = load_candidates(pack, stimuli)
    rng = np.random.default_rng(1)
    flat = candidates.tokens.reshape(len(candidates.names), -1)
    brain = rng.standard_normal((flat.shape[1], N_VOXELS)) / np.sqrt(flat.shape[1])
    betas = ((flat - flat.mean(0)) / flat.std() @ brain + 0.3 * rng.standard_normal((len(flat), N_VOXELS))).astype("f4")
    shown = [i for i in range(len(flat)) if i % 4]
    calibrator = Calibrator(candidates)
    for i in shown:
        calibrator.add(betas[i], trial=f"t{i}", stimulus=candidates.names[i], run=1 + i % 3)
    fit = calibrator.fit()
    assert len(fit.figures.components) == family.BANDS == 5
    write_bundle(tmp_path / "bundle", fit, pack=pack, participant="01", session="01")

    worker = WorkerService(DecodeSettings(pack=str(pack.folder), stimuli=stimuli))
    try:
        worker.load(tmp_path / "bundle")
        assert worker.absent == ("caption",)
        found = {
            name: list(worker.decode(update(betas[i], name))) for i, name in enumerate(candidates.names) if i % 4 == 0
        }
    finally:
        worker.close()
    right, like = [], []
    for name, parts in found.items():
        embedding, picture = (part for part, _ in parts)
        assert isinstance(embedding, Embedding)
        assert isinstance(picture, Reconstruction)
        right.append(embedding.score.predicted == name.partition("_")[0])
        seen = np.asarray(Image.open(stimuli / f"{name}.png"), np.float64)
        like.append(np.corrcoef(seen.ravel(), picture.image[..., 0].ravel())[0, 1])
    assert np.mean(right) > 0.8  # chance 1/3, 12 trials
    assert np.mean(like) > 0.5


def test_the_commands_know_it(family: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "verify", str(tmp_path / "pack")]) == 0
    out = str(tmp_path / "pool.safetensors")
    assert main(["engines", "embed", str(tmp_path / "stimuli"), "--pack", str(tmp_path / "pack"), "--out", out]) == 1
    assert "stages.embedder: expected a table, got none" in capsys.readouterr().err


def test_without_the_package_its_packs_are_refused_by_name(
    family: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(EngineError, match=r"pack\.toml: kind: expected one of .*tiny.*, got five-ridges"):
        rtdecode.open_pack(str(tmp_path / "pack"))


def update(beta: np.ndarray, trial: str) -> BetaUpdate:
    return BetaUpdate(
        stamp=Stamp(session="s", run=1, volume=3, received_s=0.0, received_mono_s=0.0),
        event=TrialEvent(run=1, trial=trial, onset_s=0.0, duration_s=2.0, stimulus=trial),
        revision=0,
        final=True,
        delay_s=8.0,
        beta=beta,
    )
