"""An encoder fitted to a session's betas judges pictures by the brain, through the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.clock import SystemClock
from rtdecode.decode.score.voxel_encoder import open_picture_responses
from rtdecode.derivatives import DECODED_COLUMNS
from rtdecode.errors import SettingsError
from rtdecode.evaluate.brain_judge import open_judge
from rtdecode.evaluate.evaluation import embedded, evaluate
from rtdecode.evaluate.recorded_session import PX, load_pictures, read_betas, read_pairs
from rtdecode.packs import open_pack, open_participant
from rtdecode.session.journal import Journal
from tests.decode_small import write_category_bundle

SHAPE = (8, 8, 6)
PICTURES, REPEATS = 30, 2


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Betas that answer linearly to tokens; decoded pictures that are the shown ones, or of another trial."""
    folder = tmp_path_factory.mktemp("judge") / "sub-a_ses-01"
    func, images = folder / "sub-a" / "ses-01" / "func", folder.parent / "images"
    for one in (func, folder / "journal", folder / "recon", images):
        one.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for place in range(PICTURES):
        colours = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((96, 96)).save(images / f"s{place:02d}.png")
    paths = sorted(images.glob("*.png"))
    tokens = embedded(open_pack("tiny"), load_pictures(paths, PX)).reshape(PICTURES, -1)
    tokens = (tokens - tokens.mean(0)) / tokens.std()
    mask = np.zeros(SHAPE, bool)
    mask[1:7, 1:7, 1:5] = True
    maps = rng.standard_normal((tokens.shape[1], mask.sum())) / np.sqrt(tokens.shape[1])
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), func / "sub-a_ses-01_desc-brain_mask.nii.gz")
    journal = Journal(folder / "journal" / "outputs.journal", SystemClock())
    rows = []
    for repeat in range(REPEATS):
        for place, path in enumerate(paths):
            values = (2 + tokens[place] @ maps + 0.7 * rng.standard_normal(mask.sum())).astype("<f4")
            name = f"t{repeat}{place:02d}"
            beta = wire.Array("<f4", values.shape, values.tobytes())
            for final in (False, True):
                message = wire.Beta(run=1 + repeat, trial=name, final=final, stimulus=path.stem, beta=beta)
                journal.append("output", topic="beta", payload=wire.pack(message)[1])
            made = paths[place] if place % 2 else paths[(place + 7) % PICTURES]
            Image.open(made).save(folder / "recon" / f"{name}.webp", lossless=True)
            row = dict.fromkeys(DECODED_COLUMNS, "n/a")
            rows.append(row | {"trial": name, "stim_id": path.stem, "recon": f"recon/{name}.webp", "caption": "x"})
    lost = wire.Beta(run=2, trial="lost", final=True, stimulus="s00", invalid="moved")
    journal.append("output", topic="beta", payload=wire.pack(lost)[1])
    journal.close()
    text = ["\t".join(DECODED_COLUMNS), *("\t".join(row[c] for c in DECODED_COLUMNS) for row in rows)]
    (func / "sub-a_ses-01_task-rtdecode_run-01_desc-decoded_events.tsv").write_text("\n".join(text) + "\n")
    command = ["fit-encoder", str(folder), "--images", str(images), "--out", str(folder.parent / "encoder")]
    assert main(command) == 0
    return folder


def test_final_betas_of_a_session_are_read_by_trial(session: Path) -> None:
    found = read_betas(session)
    assert len(found) == PICTURES * REPEATS
    assert found["t105"].run == 2
    assert found["t105"].stimulus == "s05"
    assert found["t105"].values.shape == (6 * 6 * 4,)


def test_right_pictures_agree_with_the_brain_and_wrong_ones_do_not(session: Path) -> None:
    pairs = read_pairs(session, session.parent / "images")
    judge = open_judge(session.parent / "encoder", session, [])
    tokens = embedded(open_pack("tiny"), pairs.made)
    each = judge.correlations(pairs, tokens)["all"]
    right = np.array([int(stimulus[1:]) % 2 == 1 for stimulus in pairs.stimuli])
    assert each[right].mean() > 0.4
    assert each[right].mean() > each[~right].mean() + 0.3
    encoder = judge.encoder
    place = int(np.flatnonzero(right)[0])
    own = [one.values for one in judge.betas.values() if one.stimulus == pairs.stimuli[place]]
    measured = np.mean([(beta[encoder.voxels] - encoder.centre) / encoder.scale for beta in own], axis=0)
    judges = ~encoder.selects
    expected = pearsonr(encoder.predict(tokens[place : place + 1])[0][judges], measured[judges])[0]
    assert each[place] == pytest.approx(expected, abs=1e-5)


def test_the_evaluation_tells_brain_correlation_by_region(session: Path, tmp_path: Path) -> None:
    image = np.zeros(SHAPE, np.uint8)
    image[:4] = 1
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "v1.nii.gz")
    pairs = read_pairs(session, session.parent / "images")
    judge = open_judge(session.parent / "encoder", session, [f"V1={tmp_path / 'v1.nii.gz'}"])
    figures, _ = evaluate(pairs, pack=open_pack("tiny"), weights=tmp_path / "absent", judge=judge)
    found = {figure.name: figure for figure in figures if figure.name.startswith("brain correlation")}
    names = {"brain correlation, all", "brain correlation, V1"}
    assert found.keys() == names | {f"{name}, of the pictures shown" for name in names}
    for name in names:
        assert found[name].value < found[f"{name}, of the pictures shown"].value
        assert found[name].n == len(pairs.trials)


def test_all_pictures_of_the_folder_are_predicted_and_a_bundle_carries_it(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(session.parent / "images", images)
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(images / "never-shown.png")
    region = np.zeros(SHAPE, np.uint8)
    region[:4] = 1
    nib.save(nib.Nifti1Image(region, np.eye(4)), tmp_path / "v1.nii.gz")
    write_category_bundle(tmp_path / "bundle")
    own = tmp_path / "sub-a_ses-01"
    shutil.copytree(session, own)
    journal = Journal(own / "journal" / "inputs.journal", SystemClock())
    journal.append("session", session="01")
    journal.close()
    command = ["fit-encoder", str(own), "--images", str(images), "--out", str(tmp_path / "encoder")]
    more = ["--region", f"V1={tmp_path / 'v1.nii.gz'}", "--bundle", str(tmp_path / "bundle")]
    assert main([*command, *more]) == 0
    assert "the bundle with this encoder in it" in capsys.readouterr().out
    carried = open_participant(tmp_path / "encoder-bundle").encoder
    assert carried is not None
    found = open_picture_responses(carried)
    paths = sorted(images.glob("*.png"))
    assert found.names == tuple(path.stem for path in paths)
    tokens = embedded(open_pack("tiny"), load_pictures(paths, PX))
    np.testing.assert_allclose(found.predicted, found.encoder.predict(tokens), atol=1e-6)
    mask = np.zeros(SHAPE, bool)
    mask[1:7, 1:7, 1:5] = True
    np.testing.assert_array_equal(found.regions["V1"], np.argwhere(mask)[found.encoder.voxels][:, 0] < 4)


def test_a_mask_of_another_grid_is_refused(session: Path, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "v1.nii.gz")
    with pytest.raises(SettingsError, match=r"expected NAME=MASK of shape \(8, 8, 6\), got \(3, 3, 3\)"):
        open_judge(session.parent / "encoder", session, [f"V1={tmp_path / 'v1.nii.gz'}"])
