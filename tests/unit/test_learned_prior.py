"""A group prior as a lab has it: learned from bundles, kept in a file, used by the next participant's calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.optimize import brentq

from calibration import learned_prior, session_trials
from calibration.calibrator import Calibrator, write_bundle
from calibration.common_space import HALF_MM, common_places
from calibration.encoding.group_prior import statistics_of
from calibration.learned_prior import STATISTICS, LearnedPrior, learn_from_bundles, load_prior
from calibration.targets import make_targets
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import BundleError, CalibrationError
from rtdecode.packs import EnginePack, open_participant
from rtdecode.packs.group_prior import open_group_prior
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA
from rtdecode.packs.sealed import seal
from rtdecode.statistics import percentile_ranks
from tests.decode_small import tiny_categories, tiny_pack
from tests.unit.test_group_prior import K, People

N_PICTURES, N_TEST = 400, 60
GROUPS = (slice(0, 12), slice(12, 24))


def number(name: str) -> int:
    """Seed of a participant."""
    return sum(ord(letter) << place for place, letter in enumerate(name))


def pictures(seed: int) -> tuple[Candidates, np.ndarray]:
    """Pictures and their components: half of these show in each token group."""
    rng = np.random.default_rng(seed)
    components = rng.standard_normal((N_PICTURES, K))
    axes = np.random.default_rng(5).standard_normal((2, K // 2, 12))
    tokens = np.stack([components[:, : K // 2] @ axes[0], components[:, K // 2 :] @ axes[1]], axis=1)
    tokens = (tokens + 0.02 * rng.standard_normal(tokens.shape)).astype(np.float32)
    candidates = replace(
        tiny_categories(),
        names=tuple(f"s{i}" for i in range(N_PICTURES)),
        tokens=tokens,
        category=np.arange(N_PICTURES) % 8,
        prototypes=tokens[:8],
        groups=GROUPS,
    )
    return candidates, components


class Lab:
    """People of one kind, each calibrated on pictures of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._places = folder, dict[str, np.ndarray]()
        self.people = People(3)
        monkeypatch.setattr(learned_prior, "common_places", lambda reference, mask: self._places[reference.parent.name])

    def visit(self, name: str, people: People, trials: int, prior: LearnedPrior | None = None) -> Any:
        """Calibrate one and seal the bundle; return it, the calibrator and responses to pictures of a test."""
        candidates, components = pictures(number(name))
        calibrator = Calibrator(candidates, prior=prior)
        responses, places = self.respond(people, components)
        self._places[name] = places
        calibrator.lies_at(places)
        for i in range(trials):
            calibrator.add(responses[i], trial=f"t{i}", stimulus=f"s{i}", run=1 + i // 20)
        fit = calibrator.fit()
        write_bundle(self.folder / name, fit, pack=tiny_pack(), participant=name, session="01")
        test = slice(N_PICTURES - N_TEST, None)
        model = fit.encoding
        scores = np.stack(
            [model.pictures_of(model.read(b), model.describe(candidates.tokens[test])) for b in responses[test]]
        )
        return fit, calibrator, float(np.diagonal(percentile_ranks(scores)).mean())

    @staticmethod
    def respond(people: People, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, noise, places, weights = people.draw(len(components))
        clean = people._rng.standard_normal(noise.shape)
        return (0.2 * components @ weights + clean).astype(np.float32), places


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def learned(lab: Lab, n: int = 5) -> Path:
    folders = []
    for i in range(n):
        lab.visit(f"p{i}", lab.people, 60)
        folders.append(lab.folder / f"p{i}")
    learn_from_bundles(folders, lab.folder / "group.safetensors")
    return lab.folder / "group.safetensors"


def test_a_new_participant_starts_from_what_others_taught_and_strangers_lose_nothing(lab: Lab) -> None:
    prior = load_prior(learned(lab), tiny_pack())
    assert prior.people == 5
    gained, lost = [], []
    for i in range(2):
        for people, found in ((lab.people, gained), (People(100 + i), lost)):
            state = people._rng.bit_generator.state
            with_prior, live, rank = lab.visit(f"new{i}", people, 16, prior)
            people._rng.bit_generator.state = state
            alone, _, rank_alone = lab.visit(f"new{i}", people, 16)
            found.append((rank - rank_alone, with_prior.figures.group_weight))
            assert (with_prior.figures.group_prior, alone.figures.group_prior) == (prior.identity, "")
            assert live.status().percentile is not None
    assert np.mean([gain for gain, _ in gained]) > 0.1
    assert np.mean([gain for gain, _ in lost]) > -0.03
    assert np.mean([weight for _, weight in gained]) > np.mean([weight for _, weight in lost]) + 0.2


def test_bundles_keep_sums_over_trials_and_no_response(lab: Lab) -> None:
    sizes = set()
    for trials in (24, 60):
        fit, calibrator, _ = lab.visit(f"n{trials}", lab.people, trials)
        kept = load_file(lab.folder / f"n{trials}" / STATISTICS)
        betas = np.stack(list(calibrator._betas.values()))
        standard = (betas - betas.mean(0)) / betas.std(0)
        candidates, _ = pictures(number(f"n{trials}"))
        targets = make_targets(candidates.tokens[:trials], GROUPS, most=32)
        expected = statistics_of(targets.components, standard.astype(np.float32), np.zeros((250, 3)))
        np.testing.assert_allclose(kept["gram"], expected.gram, atol=1e-6)
        np.testing.assert_allclose(kept["products"], expected.products, atol=1e-2)
        sizes.add(kept["products"].shape)
        assert fit.statistics["voxels"].tolist() == list(range(250))
    assert len({shape[1] for shape in sizes}) == 1


def test_statistics_are_brought_to_the_pictures_of_all(lab: Lab) -> None:
    prior = load_prior(learned(lab, 3), tiny_pack())
    candidates, _ = pictures(number("p1"))
    calibrator = lab.visit("p1", lab.people, 60)[1]
    betas = np.stack(list(calibrator._betas.values()))
    standard = ((betas - betas.mean(0)) / betas.std(0)).astype(np.float32)
    direct = statistics_of(prior.pictures(candidates.tokens[:60]), standard, np.zeros((250, 3)))
    person = learned_prior._Person(learned_prior.open_participant(lab.folder / "p1"))
    turned = person.within(prior.pictures)
    size = 1 + K  # what pictures differ in; the components beyond are noise of the tokens
    np.testing.assert_allclose(turned.gram[:4, :4], direct.gram[:4, :4], rtol=0.05, atol=2.0)
    assert np.corrcoef(turned.products[:size].ravel(), direct.products[:size].ravel())[0, 1] > 0.98
    every = np.concatenate([pictures(number(f"p{i}"))[0].tokens[:60] for i in range(3)])
    spread = prior.pictures(every)
    np.testing.assert_allclose(spread.mean(0)[:3], 0, atol=1e-3)
    np.testing.assert_allclose(spread.std(0)[:3], 1, atol=0.02)


def head(changes: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_file(path)
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata()
        changes(metadata)
        save_file(tensors, path, metadata=metadata)

    return spoil


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def other_numbers(path: Path) -> None:
    tensors = load_file(path)
    tensors["mean"] = tensors["mean"] + 1
    with safe_open(path, framework="numpy") as stored:
        metadata = stored.metadata()
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "expected a group prior"),
        (Path.unlink, "expected a group prior"),
        (other_numbers, "content differs from what was sealed"),
        (head(lambda told: told.update(schema="rtdecode.group-prior/9")), "got rtdecode.group-prior/9; learn it again"),
        (head(lambda told: told.update(head=told["head"].replace("brain", "other"))), "content differs"),
    ],
)
def test_a_file_that_is_not_what_was_sealed_is_refused(lab: Lab, spoil: Callable[[Path], None], reason: str) -> None:
    path = learned(lab, 2)
    load_prior(path, tiny_pack())
    spoil(path)
    with pytest.raises(BundleError, match=reason):
        load_prior(path, tiny_pack())


def test_another_pack_and_another_space_are_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    path = learned(lab, 2)
    assert open_group_prior(path).head.people == 2
    with pytest.raises(CalibrationError, match=r"described by pack other \(ffff"):
        load_prior(path, cast(EnginePack, SimpleNamespace(identity="f" * 64, name="other")))
    monkeypatch.setattr(learned_prior, "SPACE", "a template")
    with pytest.raises(CalibrationError, match="expected places in the space 'a template', got 'brain box 1'"):
        load_prior(path, tiny_pack())


def reseal(folder: Path, change: Callable[[Path], None]) -> None:
    """Change files of a sealed bundle and seal it again."""

    def write(draft: Path) -> None:
        for file in folder.iterdir():
            if file.name != "manifest.json":
                (draft / file.name).write_bytes(file.read_bytes())
        change(draft)

    seal(folder, PARTICIPANT_SCHEMA, write)


def test_a_session_is_read_with_the_prior_of_its_calibration_and_that_file_is_never_written_over(lab: Lab) -> None:
    path = learned(lab, 2)
    prior = load_prior(path, tiny_pack())
    lab.visit("new", lab.people, 16, prior)
    bundle = open_participant(lab.folder / "new")
    with pytest.raises(CalibrationError, match=r"group\.safetensors: exists already.*name a new --out"):
        learn_from_bundles([lab.folder / "p0", lab.folder / "new"], path)
    read = session_trials._prior(lab.folder, "group.safetensors", bundle, tiny_pack())
    assert read is not None
    assert read.identity == prior.identity
    assert session_trials._prior(lab.folder, None, bundle, tiny_pack()) is None
    path.unlink()
    later = learn_from_bundles([lab.folder / "p0", lab.folder / "new"], path)
    with pytest.raises(CalibrationError) as refused:
        session_trials._prior(lab.folder, "group.safetensors", bundle, tiny_pack())
    assert prior.identity[:12] in str(refused.value)
    assert later[:12] in str(refused.value)


def provenance(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "provenance.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (provenance(participant="p0"), "expected one bundle a participant, got several of p0"),
        (provenance(pack="e" * 64, pack_name="other"), "got other (eeee"),
        (
            lambda folder: (folder / STATISTICS).unlink(),
            "expected statistics.safetensors, which bundles of before lack",
        ),
    ],
)
def test_bundles_that_do_not_go_together_are_named(lab: Lab, change: Callable[[Path], None], reason: str) -> None:
    for name in ("p0", "p1"):
        lab.visit(name, lab.people, 24)
    reseal(lab.folder / "p1", change)
    with pytest.raises(CalibrationError) as refused:
        learn_from_bundles([lab.folder / "p0", lab.folder / "p1"], lab.folder / "group.safetensors")
    assert reason in str(refused.value)
    assert not (lab.folder / "group.safetensors").exists()
    with pytest.raises(CalibrationError, match="two or more participants, got 1"):
        learn_from_bundles([lab.folder / "p0"], lab.folder / "group.safetensors")


def test_places_are_measured_from_the_middle_of_the_brain_and_by_its_size(tmp_path: Path) -> None:
    def scan(name: str, voxel_mm: float, offset: np.ndarray) -> np.ndarray:
        """A bright ellipsoid in a grid; return the places of two voxels of it."""
        affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
        affine[:3, 3] = offset
        shape = (48, 56, 40)
        at = np.moveaxis(np.indices(shape), 0, -1) - np.array([24, 28, 20])
        brain = (np.square(at / [16, 20, 13]).sum(-1) < 1) * 1000.0 + np.random.default_rng(0).uniform(0, 30, shape)
        mask = np.zeros(shape, np.uint8)
        mask[24, 28, 20] = mask[24, 40, 20] = 1
        for suffix, values in (("ref", brain.astype(np.float32)), ("mask", mask)):
            nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}-{suffix}.nii.gz")
        return common_places(tmp_path / f"{name}-ref.nii.gz", tmp_path / f"{name}-mask.nii.gz")

    one, other = scan("a", 3.0, np.array([-70.0, -90, -60])), scan("b", 3.6, np.array([10.0, 20, 30]))
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(one[0], 0, atol=2.5)
    within = brentq(lambda t: 0.5 + 0.75 * t - 0.25 * t**3 - 0.99, 0, 1)  # 99 % of an ellipsoid lie up to there
    assert one[1, 1] - one[0, 1] == pytest.approx(HALF_MM[1] * 12 / (20 * within), rel=0.08)
    (tmp_path / "a-ref.nii.gz").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="expected a volume of a whole head"):
        common_places(tmp_path / "a-ref.nii.gz", tmp_path / "a-mask.nii.gz")
