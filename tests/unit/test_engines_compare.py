"""`engines compare`: a pack beside one that was made of it, on what a visit decoded; and the gate of `train-tiny`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from msgspec import structs  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from PIL import Image  # noqa: E402

from calibration.calibrator import write_bundle  # noqa: E402
from calibration.session_trials import RecordedCalibration  # noqa: E402
from engines.distill import compared_packs  # noqa: E402
from engines.sealed_copies import seal_copy  # noqa: E402
from engines.tiny import whole_recipe as recipe  # noqa: E402
from engines.tiny.comparison import gate_students  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.loading import load_candidates, load_embedder  # noqa: E402
from rtdecode.decode.resample import bilinear  # noqa: E402
from rtdecode.decoded import Reconstruction  # noqa: E402
from rtdecode.errors import TrainingError  # noqa: E402
from rtdecode.packs import open_participant  # noqa: E402
from rtdecode.simulate import world  # noqa: E402
from tests.decode_small import tiny_decoder, tiny_pack  # noqa: E402
from tests.unit.test_calibration_calibrator import attributes_of, calibrate  # noqa: E402

SEEN, LATER = 48, 12


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> RecordedCalibration:
    """A visit of 48 pictures that calibrate, and 12 later ones, the last of them twice."""
    folder = tmp_path_factory.mktemp("visit")
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng) for _ in range(SEEN + LATER)]
    (folder / "stimuli").mkdir()
    for i, scene in enumerate(scenes):
        Image.fromarray(world.render(scene)[0]).save(folder / "stimuli" / f"s{i}.png")
    attributes = np.stack([attributes_of(scene) for scene in scenes])
    betas = np.tanh(attributes @ rng.standard_normal((attributes.shape[1], 40))) @ rng.standard_normal((40, 120))
    betas = (betas + 2 * rng.standard_normal(betas.shape)).astype(np.float32)
    candidates = load_candidates(tiny_pack(), folder / "stimuli")
    calibrator = calibrate(candidates, betas, np.arange(SEEN))
    write_bundle(folder / "bundle", calibrator.fit(), pack=tiny_pack(), participant="01", session="01")
    later = [(f"s{i}", betas[i]) for i in range(SEEN, SEEN + LATER)]
    return RecordedCalibration(
        folder=folder, bundle=open_participant(folder / "bundle"), pack=tiny_pack(), stimuli=folder / "stimuli",
        candidates=candidates, calibrator=calibrator, nulls=np.zeros((0, 120), np.float32),
        rest=np.zeros((0, 120), np.float32), decoded=(*later, (later[-1][0], -later[-1][1])),
    )  # fmt: skip


@pytest.fixture
def compare(visit: RecordedCalibration, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(compared_packs, "read_calibration", lambda *_: visit)
    return lambda *packs: main(["engines", "compare", *map(str, packs), "--session", str(visit.folder)])


def shaken(out: Path, by: float, *stages: str) -> Path:
    """Seal a copy of the tiny pack whose weights of some stages are moved by a share of their deviation."""
    rng = np.random.default_rng(1)

    def change(folder: Path) -> Any:
        for stage in stages:
            model = onnx.load(folder / f"{stage}.onnx")
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                if values.dtype.kind == "f" and values.size >= 1000:
                    moved = values + by * values.std() * rng.standard_normal(values.shape)
                    tensor.CopyFrom(numpy_helper.from_array(moved.astype(values.dtype), tensor.name))
            onnx.save(model, folder / f"{stage}.onnx")
        return structs.replace(tiny_pack().description, name="shaken")

    seal_copy(tiny_pack(), out, change)
    return out


def naive_two_way(visit: RecordedCalibration) -> float:
    """Two-way identification of what a session with the tiny pack would show, counted pair by pair."""
    decoder = tiny_decoder()
    decoder.load(visit.bundle)
    embed = load_embedder(tiny_pack()).run
    made, shown = [], []
    assert visit.stimuli is not None
    for name, beta in visit.decoded[:LATER]:
        (drawn,) = [part.image for part in decoder.decode(beta, (), name) if isinstance(part, Reconstruction)]
        for rows, picture in ((made, drawn), (shown, np.asarray(Image.open(visit.stimuli / f"{name}.png")))):
            scaled = picture.transpose(2, 0, 1).astype(np.float32)[None] / 255
            rows.append(embed(bilinear(bilinear(scaled, 256), 64)).ravel())
    a, b = (np.stack(rows) - np.mean(rows) for rows in (made, shown))
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    return float(np.mean([cosines[i, i] > cosines[i, j] for i in range(LATER) for j in range(LATER) if i != j]))


def test_a_student_that_was_shaken_loses_and_one_that_was_hardly_touched_does_not(
    visit: RecordedCalibration,
    compare: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: dict[str, Any] = {}
    judge = compared_packs.judge
    for name, by in (("worse", 2.0), ("alike", 1e-3)):
        monkeypatch.setattr(
            compared_packs, "judge", lambda *given, _name=name, **more: judged.setdefault(_name, judge(*given, **more))
        )
        assert compare("tiny", shaken(tmp_path / name, by, "prior", "unclip", "autoencoder")) == 0
    said = capsys.readouterr().out
    assert judged["worse"].teacher == judged["alike"].teacher == pytest.approx(naive_two_way(visit), abs=0.01)
    assert judged["worse"].teacher > 0.75
    assert judged["worse"].pictures == LATER
    assert judged["worse"].interval[0] > 5
    assert abs(judged["alike"].points_lost) < 2
    assert judged["alike"].interval[0] <= 0 <= judged["alike"].interval[1]
    assert "tiny: drawing 12 pictures\nshaken: drawing 12 pictures\n" in said
    assert "on decoded tokens of 12 held-out pictures: two-way identification (chance 50%)" in said


def test_a_pack_that_would_take_the_ridge_for_anothers_is_refused(compare: Callable[..., int], tmp_path: Path) -> None:
    other = shaken(tmp_path / "other", 0.5, "embedder")
    with pytest.raises(TrainingError, match="pack shaken: expected one that reads a brain as pack tiny"):
        compared_packs.compare_packs("tiny", str(other), tmp_path, None, seed=0, tell=lambda _: None)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"stimuli": None}, "--stimuli"), ({"decoded": ()}, "at least 4 pictures shown after the calibration, got 0")],
)
def test_a_visit_that_shows_nothing_to_compare_with_is_refused(
    changed: dict[str, Any], reason: str, visit: RecordedCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared_packs, "read_calibration", lambda *_: replace(visit, **changed))
    with pytest.raises(TrainingError, match=reason):
        compared_packs.compare_packs("tiny", "tiny", visit.folder, None, seed=0, tell=lambda _: None)


def figures(lost: float) -> dict[str, Any]:
    """Figures as `engines.tiny.comparison.compare` gives them; at one level of noise the students lost so much."""
    each = {
        "teacher": {"two_way": [0.9, 0.88, 0.92]},
        "student_2": {"two_way": [0.9 - lost, 0.88 - lost, 0.92 - lost]},
        "student_2_minus_teacher": {"two_way": [-lost, -lost - 0.01, -lost + 0.01]},
    }
    fine = copy.deepcopy(each)
    fine["student_2_minus_teacher"]["two_way"] = [0.001, -0.001, 0.003]
    return {"n": 1024, "r2_0.5": fine, "r2_0.3": fine, "r2_0.15": each}


def test_tiny_students_that_lost_more_than_the_stated_points_are_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_students(figures(0.019), 2.0)
    gate_students(figures(0.3), 31.0)
    with pytest.raises(TrainingError, match=r"teacher 90.0%: 2.1 points lost \[1.1 to 3.1\]; .* at most 2 points"):
        gate_students(figures(0.021), 2.0)
    with pytest.raises(TrainingError, match="at most 2 points"):
        gate_students(figures(float("nan")), 2.0)
    sealed: list[Path] = []

    def seal(*given: Any) -> str:
        sealed.append(given[-1])
        given[-1].mkdir()
        (given[-1] / "report.json").write_text("{}")
        return "identity"

    trained = type("Stub", (), {"stages": {}, "r2": []})()
    for name in (
        "embedder",
        "prior",
        "decoder",
        "captioner",
        "autoencoder",
        "unclip",
        "prior_teacher",
        "unclip_teacher",
    ):
        setattr(trained, name, torch.nn.Identity())
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for name, value in {
        "train": trained, "train_few_steps": trained, "contact_sheet": None, "measure": {}, "compare": figures(0.1),
        "table": "", "draw_sample": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(recipe, name, lambda *_, _value=value, **__: _value)
    monkeypatch.setattr(recipe, "seal_pack", seal)
    told = ["engines", "train-tiny", "--out", str(tmp_path)]
    assert main(told) != 0
    assert sealed == []
    assert main([*told, "--lose", "10.5"]) == 0
    assert sealed == [tmp_path / "pack"]
