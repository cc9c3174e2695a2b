"""The sealed tiny pack as it is shipped, without torch."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import pytest

from engines import cli
from engines.tiny import layout, pack_path
from engines.tiny.data import Sample, draw_sample
from rtdecode.decode.families.tiny.painter import Painter
from rtdecode.decode.families.tiny.sentence import sentence
from rtdecode.decode.families.tiny.stimulus_tokens import embed_pictures
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.errors import BundleError
from rtdecode.simulate import world
from tests.decode_small import tiny_pack, tiny_stages

CATEGORIES = list(world.CATEGORIES)
PSNR_FLOOR_DB = 20.0


@functools.cache
def held_out() -> tuple[Sample, np.ndarray]:
    sample = draw_sample(256, 20_260_101)
    return sample, embed_pictures(tiny_stages(), sample.pictures.transpose(0, 2, 3, 1))


def category(sample: Sample) -> np.ndarray:
    return np.array([CATEGORIES.index(scene.category) for scene in sample.scenes])


def as_a_brain_gives(tokens: np.ndarray, r2: float, seed: int) -> np.ndarray:
    """Shrunk tokens with noise of their own covariance, group by group."""
    rng = np.random.default_rng(seed)
    flat = tokens.reshape(len(tokens), -1).astype(np.float64)
    many, _ = population()
    mean = many.mean(0)
    out = np.empty_like(flat)
    for group in tiny_stages().groups:
        root = np.linalg.svd((many[:, group] - mean[group]) / np.sqrt(len(many)), full_matrices=False)
        eps = rng.standard_normal((len(flat), len(root[1]))) * root[1] @ root[2]
        out[:, group] = mean[group] + r2 * (flat[:, group] - mean[group]) + np.sqrt(r2 * (1 - r2)) * eps
    return out.reshape(tokens.shape).astype(np.float32)


@functools.cache
def population() -> tuple[np.ndarray, Sample]:
    sample = draw_sample(1024, 20_260_102)
    tokens = embed_pictures(tiny_stages(), sample.pictures.transpose(0, 2, 3, 1))
    return tokens.reshape(len(tokens), -1).astype(np.float64), sample


def test_it_is_sealed_small_and_describes_itself() -> None:
    pack = tiny_pack()
    assert pack.name == "tiny"
    said = pack.described(TinyDescription)
    assert said.licence == "MIT"
    assert sum(path.stat().st_size for path in pack.folder.rglob("*")) < 40 * 2**20
    assert said.categories == CATEGORIES
    groups = said.tokens.groups
    assert groups == {"semantic": (0, layout.SEMANTIC_VALUES), "spatial": (layout.SEMANTIC_VALUES, layout.VALUES)}
    assert said.caption.vocabulary == layout.vocabulary()


def test_it_says_nothing_of_the_machine_it_was_made_on() -> None:
    for path in pack_path().glob("*.onnx"):
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert b"networks.py" not in content


def test_its_report_beats_the_pilot() -> None:
    report = tiny_pack().described(TinyDescription).report
    assert report["judge"]["truth"] > 0.99
    assert report["judge"]["true_tokens"] > 0.97
    assert report["judge"]["r2_0.5"] > 0.57
    assert report["judge"]["r2_0.3"] > 0.33


def test_its_report_holds_the_student_to_its_teacher_and_every_stage_to_its_network() -> None:
    report = tiny_pack().described(TinyDescription).report
    few = report["few_steps"]
    assert few["n"] >= 1000
    for condition in ("true_tokens", "r2_0.5", "r2_0.3", "r2_0.15"):
        mean, low, high = few[condition]["student_2_minus_teacher"]["identification"]
        assert low <= mean <= high
        assert mean > -0.03
    assert set(report["parity"]) == set(tiny_pack().description.stages) - {"adapter"}
    assert max(report["parity"].values()) <= tiny_pack().described(TinyDescription).expected_parity == 1e-4


def test_the_category_is_read_off_the_first_token() -> None:
    sample, tokens = held_out()
    assert tokens.shape == (256, layout.TOKENS, layout.CHANNELS)
    assert np.mean(tokens[:, 0, :8].argmax(1) == category(sample)) > 0.98


def test_a_batch_is_its_pictures_one_by_one() -> None:
    stages, (_, tokens) = tiny_stages(), held_out()
    together = stages.unclip_context.run({"tokens": tokens[:3]})
    for i in range(3):
        alone = stages.unclip_context.run({"tokens": tokens[i : i + 1]})
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value[0], atol=1e-4)


def painted(tokens: np.ndarray, **steps: int) -> np.ndarray:
    """Pictures (n, h, w, 3) in 0..1 of tokens, each as a trial of its own."""
    painter = Painter(tiny_stages(), seed=1, **steps)
    return np.stack([painter.paint(one, f"t{i}") for i, one in enumerate(tokens)]) / 255


def test_true_tokens_give_the_picture_back() -> None:
    sample, tokens = held_out()
    ordinary = np.flatnonzero(category(sample) != CATEGORIES.index("scrambled"))[:64]
    truth = sample.pictures[ordinary].transpose(0, 2, 3, 1) / 255
    error = np.square(painted(tokens[ordinary]) - truth).mean((1, 2, 3))
    assert np.mean(-10 * np.log10(error)) > PSNR_FLOOR_DB


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pictures_show_the_category_at_every_number_of_steps(steps: int) -> None:
    sample, tokens = held_out()
    ordinary = np.flatnonzero(category(sample) != CATEGORIES.index("scrambled"))[:40]
    pictures = painted(tokens[ordinary], unclip_steps=steps)
    seen = embed_pictures(tiny_stages(), np.rint(255 * pictures).astype(np.uint8))
    assert np.mean(seen[:, 0, :8].argmax(1) == category(sample)[ordinary]) > 0.9


def test_captions_of_true_tokens_name_category_and_colour() -> None:
    sample, tokens = held_out()
    words = tiny_stages().captioner.run({"tokens": tokens})["words"]
    captions = [sentence(row, tiny_stages().vocabulary, tiny_stages().end) for row in words]
    named = [
        scene.category in text and scene.colour in text for scene, text in zip(sample.scenes, captions, strict=True)
    ]
    assert np.mean(named) > 0.95


@pytest.mark.parametrize(("r2", "least"), [(0.5, 0.85), (0.3, 0.65), (0.15, 0.35)])
def test_the_commitment_names_the_category_through_the_noise_of_a_brain(r2: float, least: float) -> None:
    sample, tokens = held_out()
    noisy = as_a_brain_gives(tokens, r2, seed=1)
    out = tiny_stages().commit.run(
        {
            "tokens": noisy,
            "r2": np.full((len(noisy), 2), r2, dtype=np.float32),
            "category_bias": np.zeros((len(noisy), 8), dtype=np.float32),
        }
    )
    np.testing.assert_allclose(out["category"].sum(1), 1, atol=1e-4)
    assert np.mean(out["category"].argmax(1) == category(sample)) > least
    committed = out["tokens_clean"][:, 0, :8].argmax(1)
    np.testing.assert_array_equal(committed, out["category"].argmax(1))


def test_the_commitment_takes_a_category_chosen_elsewhere() -> None:
    _, tokens = held_out()
    wanted = np.arange(256) % 8
    bias = np.zeros((256, 8), dtype=np.float32)
    bias[np.arange(256), wanted] = 1e4
    r2 = np.full((256, 2), 0.3, dtype=np.float32)
    clean = tiny_stages().commit.run({"tokens": tokens, "r2": r2, "category_bias": bias})["tokens_clean"]
    np.testing.assert_array_equal(clean[:, 0, :8].argmax(1), wanted)


def test_prototypes_are_the_mean_tokens_of_their_category() -> None:
    many, sample = population()
    names = category(sample)
    for i, prototype in enumerate(tiny_stages().prototypes.reshape(8, -1)):
        mean = many[names == i].mean(0)
        assert np.corrcoef(mean, prototype)[0, 1] > 0.97


def test_every_caption_can_be_said_and_fits() -> None:
    numbers = {word: i for i, word in enumerate(layout.vocabulary())}
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = world.sample_scene(rng)
        ids = layout.caption_ids(scene, numbers)
        assert sentence(ids, layout.vocabulary(), layout.END) == world.caption(scene)


def test_a_code_says_what_the_scene_is() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = world.sample_scene(rng)
        parts = [layout.scene_code(scene)[part] for part in layout.code_slices()]
        assert CATEGORIES[int(parts[0].argmax())] == scene.category
        assert world.COLOURS[int(parts[1].argmax())] == scene.colour
        assert world.BACKGROUNDS[int(parts[2].argmax())] == scene.background
        assert np.abs(parts[3]).max() <= 1 + 1e-6


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    return parser.parse_args(["engines", *words])


def test_the_commands_list_and_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = parse("verify", str(pack_path()))
    assert args.handler(args) == 0
    assert f"tiny, sealed as {tiny_pack().identity}" in capsys.readouterr().out
    args = parse("list")
    assert args.handler(args) == 0
    args = parse("verify", str(tmp_path / "none"))
    with pytest.raises(BundleError, match="expected a folder"):
        args.handler(args)
