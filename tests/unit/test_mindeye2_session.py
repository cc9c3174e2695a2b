"""A MindEye2 pack in a session: its stimuli, a participant calibrated onto its hidden space, and what is decoded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from calibration.calibrator import Calibrator, write_bundle
from engines.importing.fake import write_fake_mindeye2
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.arrays import in_bytes
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.families.latent_map import LatentsTable
from rtdecode.decode.families.mindeye2 import MindEye2Family, load_mindeye2
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.recipe import recipe_of
from rtdecode.decode.families.stimulus_folder import CATEGORIES, EMBEDDINGS
from rtdecode.decode.loading import load_candidates, load_decoder
from rtdecode.decode.pipeline import Embedded
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.service import LocalService
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import Caption, Embedding, Reconstruction
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack, open_pack, open_participant
from rtdecode.packs.description import PACK_SCHEMA, write_description
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA, write_records
from rtdecode.packs.sealed import seal
from rtdecode.records import BetaUpdate, Stamp, TrialEvent
from rtdecode.settings import DecodeSettings
from tests.packs import description

HIDDEN = mindeye2_sizes("small")["backbone"][1]["hidden"]
DECODED = ("ridge", "backbone", "prior", "converter", "captioner", "unclip", "autoencoder")
KINDS = ("bird", "boat", "tree", "vase")
N_VOXELS = 90
STEPS = {"prior_steps": 3, "unclip_steps": 2}


def make_pack(folder: Path, stages: Sequence[str]) -> EnginePack:
    """Random networks with a map: only its digest is asked for here."""
    write_fake_mindeye2(folder / "random", dims="small", stages=stages)
    bare = open_pack(str(folder / "random"))

    def write(draft: Path) -> None:
        for path in bare.folder.rglob("*"):
            if path.is_file() and path.name not in ("manifest.json", "pack.toml"):
                (draft / path.relative_to(bare.folder)).parent.mkdir(parents=True, exist_ok=True)
                (draft / path.relative_to(bare.folder)).write_bytes(path.read_bytes())
        save_file({"token_mean": np.zeros(3, np.float32)}, draft / "latents.safetensors")
        table = LatentsTable(
            file="latents.safetensors",
            components=1,
            pictures=1,
            trials=1,
            participants=[0],
            penalty=1.0,
            held_out_r2=0.0,
        )
        write_description(draft, replace(bare.described(MindEye2Description), latents=table))

    seal(folder / "pack", PACK_SCHEMA, write)
    return open_pack(str(folder / "pack"))


def latents(n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hidden vectors (n, hidden) around four centres, and which centre."""
    rng = np.random.default_rng(11)
    kind = np.arange(n) % len(KINDS)
    centres = rng.standard_normal((len(KINDS), HIDDEN))
    return (centres[kind] + 0.7 * rng.standard_normal((n, HIDDEN))).astype(np.float32), kind


def write_stimuli(folder: Path, pack: EnginePack, n: int = 120) -> None:
    folder.mkdir()
    hidden, kind = latents(n)
    names = [f"s{i:03d}" for i in range(n)]
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / f"{name}.jpg")
    facts = {"names": json.dumps(names), "latents": pack.digest("latents.safetensors")}
    save_file({"tokens": np.zeros((n, 1, 1), np.float16), "latents": hidden}, folder / EMBEDDINGS, metadata=facts)
    (folder / CATEGORIES).write_text(json.dumps({name: KINDS[k] for name, k in zip(names, kind, strict=True)}))


def beta_of(hidden: np.ndarray[Any, Any], noise: float, seed: int) -> np.ndarray[Any, Any]:
    patterns = np.random.default_rng(3).standard_normal((HIDDEN, N_VOXELS)) / np.sqrt(HIDDEN)
    return (hidden @ patterns + noise * np.random.default_rng(seed).standard_normal(N_VOXELS)).astype(np.float32)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    return make_pack(tmp_path_factory.mktemp("packs"), DECODED)


@pytest.fixture(scope="module")
def stimuli(pack: EnginePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "stimuli"
    write_stimuli(folder, pack)
    return folder


@pytest.fixture(scope="module")
def bundle(pack: EnginePack, stimuli: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    candidates = load_candidates(pack, stimuli)
    calibrator = Calibrator(candidates)
    for i in range(80):
        beta = beta_of(candidates.tokens[i, 0], 0.3, i)
        calibrator.add(beta, trial=f"t{i}", stimulus=candidates.names[i], run=1 + i // 20)
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(folder, calibrator.fit(), pack=pack, participant="01", session="01")
    return folder


@pytest.fixture(scope="module")
def decoder(pack: EnginePack, stimuli: Path, bundle: Path) -> Decoder:
    made = load_decoder(pack, DecodeSettings(stimuli=stimuli, **STEPS), seed=5)
    made.load(open_participant(bundle))
    return made


def update(beta: np.ndarray[Any, Any]) -> BetaUpdate:
    return BetaUpdate(
        stamp=Stamp(session="test-01", run=5, volume=12, received_s=0.0, received_mono_s=0.0),
        event=TrialEvent(run=5, trial="r5t1", onset_s=0.0, duration_s=2.0, stimulus="s100"),
        revision=0,
        final=True,
        delay_s=8.0,
        beta=beta,
    )


def test_stimuli_are_hidden_vectors_with_categories(pack: EnginePack, stimuli: Path) -> None:
    found = load_candidates(pack, stimuli)
    hidden, kind = latents(120)
    assert found.names[7] == "s007"
    assert found.categories == KINDS
    np.testing.assert_array_equal(found.tokens, hidden[:, None])
    np.testing.assert_array_equal(found.category, kind)
    np.testing.assert_allclose(found.prototypes[2, 0], hidden[2::4].mean(0), atol=1e-6)


def without_numbers(folder: Path) -> None:
    path = folder / EMBEDDINGS
    with safe_open(path, framework="np") as file:
        facts, hidden = file.metadata(), file.get_tensor("latents")
    hidden[3, 0] = np.nan
    save_file({"latents": hidden}, path, metadata=facts)


def remake(folder: Path, **facts: str) -> None:
    hidden, _ = latents(120)
    save_file({"latents": hidden}, folder / EMBEDDINGS, metadata=facts)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / CATEGORIES).unlink(), "expected a JSON object of stimulus to category"),
        (lambda f: (f / CATEGORIES).write_text('{"s000": 1}'), "both text"),
        (lambda f: (f / CATEGORIES).write_text('{"s000": "a"}'), "at least two categories, got 1"),
        (lambda f: (f / CATEGORIES).write_text('{"s000": "a", "s001": "b"}'), "none of s002, s003"),
        (lambda f: (f / EMBEDDINGS).unlink(), "rtdecode engines embed"),
        (lambda f: (f / EMBEDDINGS).write_bytes(b"x" * 40), "expected embeddings of the pictures"),
        (lambda f: remake(f, names="[]", latents="another"), "by the map of pack"),
        (lambda f: remake(f, names="["), "rtdecode engines embed"),
        (without_numbers, "not numbers in s003"),
        (lambda f: Image.new("RGB", (4, 4)).save(f / "later.png"), r"changed since \(later\)"),
        (lambda f: Image.new("RGB", (4, 4)).save(f / "s000.png"), "one picture of s000"),
    ],
)
def test_stimuli_that_cannot_be_used_are_refused_with_the_remedy(
    pack: EnginePack, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    write_stimuli(tmp_path / "stimuli", pack)
    spoil(tmp_path / "stimuli")
    with pytest.raises(BundleError, match=reason):
        load_candidates(pack, tmp_path / "stimuli")


def test_a_category_without_a_picture_is_refused(pack: EnginePack, tmp_path: Path) -> None:
    write_stimuli(tmp_path / "stimuli", pack)
    told = json.loads((tmp_path / "stimuli" / CATEGORIES).read_text())
    (tmp_path / "stimuli" / CATEGORIES).write_text(json.dumps({**told, "unseen": "zebra"}))
    with pytest.raises(BundleError, match="a picture of every category, none of zebra"):
        load_candidates(pack, tmp_path / "stimuli")


def test_a_pack_without_stimuli_or_without_a_map_is_refused(pack: EnginePack, stimuli: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"needs decode\.stimuli"):
        load_decoder(pack)
    write_fake_mindeye2(tmp_path / "bare", dims="small", stages=DECODED)
    with pytest.raises(BundleError, match="rtdecode engines latents"):
        load_decoder(open_pack(str(tmp_path / "bare")), DecodeSettings(stimuli=stimuli))


def test_a_pack_of_another_kind_is_refused(pack: EnginePack) -> None:
    said = description(kind="gnet")
    other = EnginePack(folder=pack.folder, identity="x", description=said)
    with pytest.raises(EngineError, match="a pack that decodes, got one of kind gnet, which predicts the brain"):
        load_candidates(other, None)


def test_trials_that_calibration_has_not_seen_are_named(decoder: Decoder) -> None:
    candidates = decoder.candidates
    ranks, right = [], []
    for i in range(80, 120):
        score = decoder.embed(beta_of(candidates.tokens[i, 0], 0.3, 1000 + i), (candidates.names[i],)).score
        assert score.pool == 40
        ranks.append(score.rank)
        right.append(score.predicted == KINDS[candidates.category[i]])
    assert np.mean(ranks) < 8  # of 40; 20.5 is chance
    assert np.mean(right) > 0.7  # of four; .25 is chance


def test_the_adapter_takes_the_place_of_the_ridge(decoder: Decoder, pack: EnginePack, bundle: Path) -> None:
    adapter = adapter_from(open_participant(bundle).adapter)
    beta = beta_of(decoder.candidates.tokens[90, 0], 0.3, 0)
    beta[adapter.voxels[4]] = np.nan
    seen = decoder.embed(beta)
    x = np.where(np.isnan(beta[adapter.voxels]), 0, (beta[adapter.voxels] - adapter.mean) / adapter.scale)
    components = x.astype(np.float64) @ adapter.weights + adapter.intercept
    np.testing.assert_allclose(seen.components, components, atol=1e-4)
    mind = load_mindeye2(pack)
    mind.take_ridge(np.eye(HIDDEN, dtype=np.float32), np.zeros(HIDDEN, np.float32))
    expected = mind.embed((components @ adapter.basis + adapter.token_mean).astype(np.float32))
    np.testing.assert_allclose(seen.tokens, mind.host(expected.retrieval)[0], rtol=2e-3, atol=2e-3)  # sent as float16
    assert np.std(seen.tokens) > 0.1


def test_parts_come_in_order_and_the_trial_fixes_the_noise(decoder: Decoder) -> None:
    beta = beta_of(decoder.candidates.tokens[95, 0], 0.3, 0)
    first, again = (list(decoder.decode(beta, (), "r1t1")) for _ in range(2))
    embedding, picture, caption = first
    assert isinstance(embedding, Embedding)
    assert embedding.tokens.dtype == np.float16
    assert isinstance(caption, Caption)
    assert caption.text == again[2].text  # type: ignore[union-attr]
    assert isinstance(picture, Reconstruction)
    assert picture.image.dtype == np.uint8
    assert picture.image.shape[2] == 3
    np.testing.assert_array_equal(picture.image, again[1].image)  # type: ignore[union-attr]
    other = list(decoder.decode(beta, (), "r1t2"))[1]
    assert np.any(picture.image != other.image)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    further = ("blurry_autoencoder", "embedder", "refiner", "refiner_autoencoder", "prompt")
    return make_pack(tmp_path_factory.mktemp("whole"), (*DECODED, *further))


@pytest.mark.parametrize("finish", ["blend", "refine"])
def test_a_picture_is_finished_as_the_published_decoder_does_and_comes_plain_before(
    whole: EnginePack, finish: Literal["blend", "refine"]
) -> None:
    recipe = dataclasses.replace(
        recipe_of(whole.described(MindEye2Description)), **STEPS, best_of=2, small_autoencoder=False
    )
    settings = DecodeSettings(backend="torch", best_of=2, finish=finish, **STEPS)
    pipeline = MindEye2Family().pipeline(whole, settings, choose("torch", whole), seed=0)
    hidden = pipeline._mind.embed(np.full(pipeline._mind.voxels, 0.3, np.float32))
    settled = pipeline.settle(Embedded(components=np.zeros(1), tokens=np.zeros(1), state=hidden), "", "")
    early, picture = pipeline.preview(settled), pipeline.picture(settled, "")
    mind = load_mindeye2(whole, backend=choose("torch", whole), recipe=recipe)
    right = mind.decode(np.full(mind.voxels, 0.3, np.float32), seed=settled.seed)
    assert right.picture is not None
    assert right.blurry is not None
    assert right.blended is not None
    assert early is not None
    np.testing.assert_array_equal(early, in_bytes(right.picture))
    expected = right.blended if finish == "refine" else mind.blend(right.picture, right.blurry)
    np.testing.assert_array_equal(picture, in_bytes(expected))


def test_what_a_pack_cannot_finish_is_refused(pack: EnginePack, stimuli: Path) -> None:
    for finish, lacking in (("blend", "--blurry-autoencoder"), ("refine", "--refiner")):
        with pytest.raises(EngineError, match=rf"decode.finish '{finish}': .*{lacking}"):
            load_decoder(pack, DecodeSettings(stimuli=stimuli, finish=finish))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="best_of 3 needs the embedder"):
        load_decoder(pack, DecodeSettings(stimuli=stimuli, best_of=3))
    with pytest.raises(EngineError, match=r"decode\.best_of and decode\.finish: for packs of MindEye2.*kind tiny"):
        load_decoder(open_pack("tiny"), DecodeSettings(best_of=2))


def test_absent_stages_are_told_and_the_rest_runs(bundle: Path, tmp_path: Path) -> None:
    pack = make_pack(tmp_path, ("ridge", "backbone", "prior"))
    write_stimuli(tmp_path / "stimuli", pack)
    service = LocalService(load_decoder(pack, DecodeSettings(stimuli=tmp_path / "stimuli")))
    assert service.absent == ("caption", "picture")
    fit = open_participant(bundle)

    def write(folder: Path) -> None:
        for path in bundle.glob("*.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
        write_records(folder, replace(fit.provenance, pack=pack.identity), [])

    seal(tmp_path / "bundle", PARTICIPANT_SCHEMA, write)
    service.load(tmp_path / "bundle")
    parts = [part for part, _ in service.decode(update(beta_of(latents(120)[0][100], 0.3, 0)))]
    assert [type(part) for part in parts] == [Embedding]


def test_a_bundle_of_other_categories_is_refused(pack: EnginePack, bundle: Path, tmp_path: Path) -> None:
    write_stimuli(tmp_path / "stimuli", pack)
    told = json.loads((tmp_path / "stimuli" / CATEGORIES).read_text())
    renamed = {name: kind.replace("vase", "jug") for name, kind in told.items()}
    (tmp_path / "stimuli" / CATEGORIES).write_text(json.dumps(renamed))
    decoder = load_decoder(pack, DecodeSettings(stimuli=tmp_path / "stimuli", **STEPS))
    with pytest.raises(BundleError, match=r"bird, boat, tree, vase apart.*bird, boat, jug, tree"):
        decoder.load(open_participant(bundle))


def test_the_worker_gives_the_same_bytes_as_the_caller_s_process(
    pack: EnginePack, stimuli: Path, bundle: Path, decoder: Decoder
) -> None:
    beta = beta_of(decoder.candidates.tokens[100, 0], 0.3, 0)
    worker = WorkerService(DecodeSettings(pack=str(pack.folder), stimuli=stimuli, **STEPS), seed=5)
    try:
        assert worker.categories == KINDS
        assert worker.absent == ()
        worker.load(bundle)
        found = [part for part, _ in worker.decode(update(beta))]
    finally:
        worker.close()
    mine = list(decoder.decode(beta, ("s100",), "r5t1"))
    assert [type(part) for part in found] == [type(part) for part in mine]
    np.testing.assert_array_equal(found[0].tokens, mine[0].tokens)  # type: ignore[union-attr]
    np.testing.assert_array_equal(found[1].image, mine[1].image)  # type: ignore[union-attr]
    assert found[0].score.rank == mine[0].score.rank  # type: ignore[union-attr]
