"""A student beside its teacher on held-out pictures, and the gate that a spoilt one does not pass."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from safetensors.torch import load_file  # noqa: E402

from engines import cli  # noqa: E402
from engines.distill import imported_packs as published  # noqa: E402
from engines.distill.judging import gate, held_out, judge, told  # noqa: E402
from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from engines.training.loop import Fitted  # noqa: E402
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description  # noqa: E402
from rtdecode.errors import TrainingError  # noqa: E402
from rtdecode.packs import open_pack  # noqa: E402
from tests.training_small import write_distilling  # noqa: E402

N = 40


def test_identification_is_the_share_of_other_pictures_that_are_less_alike() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((9, 2, 5))
    made = truth + 1.5 * rng.standard_normal(truth.shape)
    spoilt = rng.standard_normal(truth.shape)
    found = judge(*(torch.from_numpy(one) for one in (made, spoilt, truth)), decoded=True, seed=0)

    def naive(one: np.ndarray) -> np.ndarray:
        flat, wanted = (x.reshape(9, -1) - x.mean() for x in (one, truth))
        share = []
        for i in range(9):
            alike = [flat[i] @ w / np.linalg.norm(flat[i]) / np.linalg.norm(w) for w in wanted]
            share.append(np.mean([alike[j] < alike[i] for j in range(9) if j != i]))
        return np.array(share)

    assert found.teacher == pytest.approx(naive(made).mean())
    assert found.student == pytest.approx(naive(spoilt).mean())
    assert found.points_lost == pytest.approx(100 * (naive(made) - naive(spoilt)).mean())
    assert found.interval[0] < found.points_lost < found.interval[1]
    assert found.pictures == 9
    with pytest.raises(TrainingError, match=re.escape(f"the student is not sealed: {told(found)}; expected at most 2")):
        gate(found, 2.0)
    gate(judge(*(torch.from_numpy(one) for one in (made, made, truth)), decoded=True, seed=0), 0.0)


def test_a_fifth_of_the_pictures_is_held_out_over_all_of_them() -> None:
    found = held_out(np.repeat(np.arange(100, 150), 3))
    assert len(found) == 10
    assert found[0] == 100
    assert found[-1] == 149
    assert len(held_out(np.arange(10_000))) == 64
    with pytest.raises(TrainingError, match="at least 4 pictures"):
        held_out(np.array([1, 2, 2, 3]))


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["engines", *map(str, words)])
    code: int = args.handler(args)
    return code


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fake") / "pack"
    write_fake_mindeye2(out, dims="small", stages=("ridge", "backbone", "prior", "unclip"), precision="float32")
    return out


@pytest.mark.parametrize("stage", ["prior", "unclip"])
def test_a_spoilt_student_is_refused_and_a_good_one_sealed_with_its_figures(
    stage: str, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures held out are those that the teacher itself makes of their trials: it is always right."""
    pictures, trials = write_distilling(tmp_path, fake, N)
    drawn: list[Any] = []
    truth: dict[str, Any] = {}
    compare = published.judge

    def watched(student: torch.nn.Module, batches: Any, **_: Any) -> Any:
        drawn.extend(batches(torch.Generator().manual_seed(seed)) for seed in range(20))
        if spoil:
            with torch.no_grad():
                for value in student.parameters():
                    value.copy_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        return copy.deepcopy(student), Fitted(seconds=0.0, skipped=0)

    def judged(by_teacher: Any, by_student: Any, shown: Any, **options: Any) -> Any:
        truth["shown"] = shown
        if spoil and stage == "unclip":  # whose small random networks leave the noise that both begin with
            by_student = by_student.roll(1, 0)
        return compare(by_teacher, by_student if spoil else by_teacher, by_teacher, **options)

    monkeypatch.setattr(published, "distil", watched)
    monkeypatch.setattr(published, "judge", judged)
    words = ["distill", stage, fake, *pictures, *trials, "--batch", 8]
    spoil = True
    with pytest.raises(TrainingError, match=r"on decoded tokens of 8 held-out pictures: .* its teacher 100.0%: "):
        run(*words, "--out", tmp_path / "spoilt")
    assert not (tmp_path / "spoilt").exists()
    spoil = False
    assert run(*words, "--out", tmp_path / "good") == 0
    said = open_pack(str(tmp_path / "good")).described(MindEye2Description).distilled[stage].judged  # type: ignore[index]
    assert said is not None
    assert (said.pictures, said.decoded, said.teacher, said.points_lost) == (8, True, 1.0, 0.0)
    column = "tokens" if stage == "prior" else "latent"
    rows = load_file(tmp_path / "shown.safetensors")[column]
    held = {int((rows - one).flatten(1).abs().sum(1).argmin()) for one in truth["shown"]}
    assert held == set(held_out(np.arange(N)).tolist())
    seen = {int((rows - one).flatten(1).abs().sum(1).argmin()) for batch, _ in drawn for one in batch}
    assert len(seen) > 20
    assert not seen & held  # what judges was not trained on


def test_without_participants_the_unclip_is_judged_on_true_tokens(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, _ = write_distilling(tmp_path, fake, 8)
    monkeypatch.setattr(published, "distil", lambda student, *_, **__: (student, Fitted(seconds=0.0, skipped=0)))
    assert run("distill", "unclip", fake, *pictures, "--out", tmp_path / "out", "--lose", 100) == 0
    said = open_pack(str(tmp_path / "out")).described(MindEye2Description).distilled["unclip"].judged
    assert said is not None
    assert not said.decoded
    assert "on true tokens" in told(said)
