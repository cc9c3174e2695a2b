"""The papers' measures of a session folder, against plain computations."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.clock import SystemClock
from rtdecode.decode.resample import bilinear
from rtdecode.derivatives import DECODED_COLUMNS
from rtdecode.errors import SettingsError
from rtdecode.evaluate import judges as networks
from rtdecode.evaluate import texts
from rtdecode.evaluate.evaluation import evaluate, read_references
from rtdecode.evaluate.recorded_session import PX, read_pairs
from rtdecode.evaluate.words import rouge_1, rouge_l
from rtdecode.packs import open_pack
from rtdecode.session.journal import Journal

RNG = np.random.default_rng(0)
N = 6
COLOURS = RNG.integers(0, 255, (N, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def visit(tmp_path: Path) -> tuple[Path, Path]:
    """A session whose pictures are the shown ones, noisier from trial to trial, and the shown ones."""
    session, images = tmp_path / "sub-a_ses-01", tmp_path / "images"
    func = session / "sub-a" / "ses-01" / "func"
    for folder in (func, session / "recon", session / "journal", images):
        folder.mkdir(parents=True)
    rows = []
    tokens = embedded(COLOURS)
    with_noise = tokens + 0.1 * RNG.standard_normal(tokens.shape).astype(np.float32)
    journal = Journal(session / "journal" / "outputs.journal", SystemClock())
    for i in range(N):
        shown = Image.fromarray(COLOURS[i]).resize((96, 96))
        shown.save(images / f"s{i}.png")
        noise = RNG.normal(0, 12 * i, (96, 96, 3))
        made = np.clip(np.asarray(shown) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(made).save(session / "recon" / f"t{i}_rev-2.webp", lossless=True)
        row = dict.fromkeys(DECODED_COLUMNS, "n/a")
        row |= {"trial": f"t{i}", "stim_id": f"s{i}", "recon": f"recon/t{i}_rev-2.webp", "caption": f"a {i} thing"}
        rows.append(row)
        for final in (False, True):
            values = with_noise[i] if final else np.zeros_like(with_noise[i])
            packed = wire.Array("<f4", values.shape, values.tobytes())
            message = wire.Embedding(trial=f"t{i}", final=final, tokens=packed)
            journal.append("output", topic="embedding", payload=wire.pack(message)[1])
    journal.close()
    rows.append({**rows[0], "trial": "t9", "stim_id": "nowhere"})
    rows.append({**rows[0], "trial": "t10", "recon": ""})
    text = ["\t".join(DECODED_COLUMNS), *("\t".join(row[c] for c in DECODED_COLUMNS) for row in rows)]
    (func / "sub-a_ses-01_task-rtdecode_run-01_desc-decoded_events.tsv").write_text("\n".join(text) + "\n")
    return session, images


def embedded(colours: np.ndarray) -> np.ndarray:
    from rtdecode.decode.runtime.engine import OnnxEngine

    pack = open_pack("tiny")
    engine = OnnxEngine(pack.folder / pack.description.stage("embedder").file, name="embedder", threads=1)
    shown = [np.asarray(Image.fromarray(one).resize((96, 96)), np.float32) / 255 for one in colours]
    pictures = bilinear(bilinear(np.stack(shown).transpose(0, 3, 1, 2), PX), 64)
    return np.asarray(engine.run({"image": pictures})["tokens"])


def test_pairs_are_final_pictures_and_what_was_shown(visit: tuple[Path, Path]) -> None:
    pairs = read_pairs(*visit)
    assert pairs.trials == tuple(f"t{i}" for i in range(N))
    assert pairs.stimuli == tuple(f"s{i}" for i in range(N))
    assert [reason.split(":")[0] for reason in pairs.left_out] == ["t9", "t10"]
    np.testing.assert_allclose(pairs.true[0], pairs.made[0], atol=1e-6)
    assert pairs.tokens is not None
    assert pairs.tokens.shape == (N, 640)


def test_figures_have_chance_sample_and_interval(visit: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = read_pairs(*visit)
    figures, missing = evaluate(pairs, pack=open_pack("tiny"), weights=tmp_path / "absent")
    by_name = {figure.name: figure for figure in figures}
    expected = [
        np.corrcoef(bilinear(a, 425).ravel(), bilinear(b, 425).ravel())[0, 1]
        for a, b in zip(pairs.true, pairs.made, strict=True)
    ]
    assert by_name["PixCorr"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert by_name["PixCorr"].n == N
    assert by_name["pack's embedder, two-way"].chance == 0.5
    assert by_name["pack's embedder, two-way"].value > 0.8
    retrieval = by_name["image retrieval, top-1 of 6"]
    assert retrieval.chance == pytest.approx(1 / 6)
    assert retrieval.value == 1.0
    for figure in figures:
        assert figure.interval[0] <= figure.value <= figure.interval[1]
    told = {one.name: one.reason for one in missing}
    assert {feature.name for feature in networks.FEATURES} <= told.keys()
    assert told["AlexNet(2)"] == f"no weights at {tmp_path / 'absent' / 'alexnet-owt-7be5be79.pth'}"
    assert told["Sentence"] == f"no weights at {tmp_path / 'absent' / 'all-MiniLM-L6-v2'}"
    assert "--captions" in told["ROUGE-L"]


def test_a_network_whose_weights_are_there_is_used(visit: tuple[Path, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = models.alexnet().eval()
    torch.save(network.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    features = networks.load(networks.FEATURES[1], tmp_path)
    pictures = RNG.uniform(size=(2, 3, PX, PX)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    given = torch.from_numpy(((pictures - mean[:, None, None]) / std[:, None, None]).astype(np.float32))
    with torch.no_grad():
        expected = network.features[:12](given).flatten(1)
    np.testing.assert_allclose(features(pictures), expected.numpy(), atol=1e-5)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    figures, missing = evaluate(read_pairs(*visit), pack=None, weights=tmp_path)
    assert "AlexNet(5), two-way" not in {figure.name for figure in figures}
    assert any(one.name == "AlexNet(5)" and "no weights at" not in one.reason for one in missing)


@pytest.mark.parametrize("name", ["Inception", "EffNet-B", "SwAV"])
def test_features_are_those_of_the_average_pool(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    feature = next(one for one in networks.FEATURES if one.name == name)
    torch.manual_seed(0)
    made = {
        "Inception": lambda: models.inception_v3(init_weights=False, transform_input=True),
        "EffNet-B": models.efficientnet_b1,
        "SwAV": models.resnet50,
    }[name]()
    state = made.state_dict()
    if name == "SwAV":  # saved from a parallel training, with heads of its own
        own = {key: value for key, value in state.items() if not key.startswith("fc.")}
        heads = {"projection_head.0.weight": torch.zeros(2), "prototypes.weight": torch.zeros(2)}
        state = {f"module.{key}": value for key, value in {**own, **heads}.items()}
    torch.save(state, tmp_path / feature.file)
    pictures = RNG.uniform(size=(2, 3, feature.px, feature.px)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    given = torch.from_numpy(((pictures - mean[:, None, None]) / std[:, None, None]).astype(np.float32))
    pooled: list[np.ndarray] = []
    made.avgpool.register_forward_hook(lambda _module, _given, out: pooled.append(out.flatten(1).numpy()))
    with torch.no_grad():
        made.eval()(given)
    np.testing.assert_allclose(networks.load(feature, tmp_path)(pictures), pooled[0], rtol=1e-4, atol=1e-5)


def test_meteor_of_the_words_themselves(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    measure = next(one for one in texts.TEXTS if one.name == "METEOR")
    path = tmp_path / measure.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no words")
    with pytest.raises(ValueError, match="not WordNet"):
        texts.load(measure, tmp_path)
    parts = ("noun", "verb", "adj", "adv")
    files = [f"{kind}.{part}" for kind in ("index", "data") for part in parts] + [f"{part}.exc" for part in parts]
    with ZipFile(path, "w") as archive:  # a WordNet that knows no word: what is left are words and their stems
        for name in ("lexnames", "index.sense", *files):
            archive.writestr(f"wordnet/{name}", "")
    alike = texts.load(measure, tmp_path)
    # all of n words match in one piece: 1 less half the cube of 1 / n; of the references the best counts
    assert alike("a red dog", ["nothing", "A red dog"]) == pytest.approx(1 - 0.5 / 27)
    assert alike("red dogs ran away", ["red dog ran away"]) == pytest.approx(1 - 0.5 / 64)
    assert alike("blue", ["a red dog"]) == 0


def test_captions_against_counted_words(visit: tuple[Path, Path], tmp_path: Path) -> None:
    # one word of four and four; the longest common run in order is "a ... cat"
    assert rouge_1("a red cat", ["the cat sat"]) == pytest.approx(2 * 1 / 6)
    assert rouge_l("a red big cat", ["cat a big red cat"]) == pytest.approx(2 * 3 / 9)
    assert rouge_l("a red cat", ["dog", "A RED cat."]) == 1.0
    assert rouge_1("a", []) == 0.0
    (tmp_path / "captions.json").write_text(json.dumps({"s0": "a 0 thing", "s1": ["no", "a 1 ring"]}))
    figures, _ = evaluate(
        read_pairs(*visit), pack=None, weights=tmp_path, references=read_references(tmp_path / "captions.json")
    )
    rouge = next(figure for figure in figures if figure.name == "ROUGE-1")
    assert (rouge.value, rouge.n) == (pytest.approx((1 + 2 / 3) / 2), 2)


def test_the_command_writes_a_page(visit: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    session, images = visit
    assert main(["evaluate", str(session), "--images", str(images)]) == 0
    said = capsys.readouterr().out
    assert "PixCorr" in said
    assert "not taken: SwAV: no weights at" in said
    page = (session / "evaluation" / "evaluation.html").read_text()
    assert page.count("<figure>") == N
    assert "95 % interval" in page
    content = json.loads((session / "evaluation" / "evaluation.json").read_text())
    assert content["trials"] == N
    assert main(["evaluate", str(session / "none"), "--images", str(images)]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told(visit: tuple[Path, Path], tmp_path: Path) -> None:
    session, images = visit
    for path in images.glob("s[1-5].png"):
        path.unlink()
    with pytest.raises(SettingsError, match="expected at least 3 decoded trials to compare, got 1"):
        read_pairs(session, images)
    (images / "s1.png").write_bytes(b"no picture")
    (images / "s2.png").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match="expected a picture"):
        read_pairs(session, images)
    with pytest.raises(SettingsError, match="expected JSON"):
        read_references(tmp_path / "absent.json")
