"""The stages of the tiny pack's first half: trained by the common loop, to the last bit as the shipped pack was."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from engines.tiny import layout, train  # noqa: E402
from engines.tiny.batches import Batch, batches  # noqa: E402
from engines.tiny.data import draw_sample  # noqa: E402
from engines.training.loop import Fitted, fit, make_accelerator  # noqa: E402
from rtdecode.errors import TrainingError  # noqa: E402
from tests.training_small import small_stage_settings  # noqa: E402

STAGE = replace(train.STAGES["captioner"], steps=45, rate=1e-2, seed=1, save_every_s=0.0)
LINEAR = draw_sample(30, 0)


class Linear(torch.nn.Module):
    """Codes to noisy codes; may stop, or give no number, at some steps."""

    def __init__(self, *, stop_at: int | None = None, nan_from: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(layout.CODE, layout.CODE)
        self.seen = 0
        self._stop_at, self._nan_from = stop_at, nan_from

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        self.seen += 1
        if self.seen == self._stop_at:
            raise KeyboardInterrupt
        target = batch.codes + 0.1 * torch.randn(batch.codes.shape, generator=draw)
        value = (self.linear(batch.codes) - target).square().mean()
        return value if self._nan_from is None or self.seen < self._nan_from else value * float("nan")


def linear_training(folder: Path, *, resume: bool = False, plan: train.StagePlan = STAGE, **how: int) -> Linear:
    made = Linear(**how)
    objective = train.StageObjective(made.linear, made.loss)
    fit(objective, batches(LINEAR, 8), plan, folder=folder, resume=resume, accelerator=make_accelerator(cpu=True))
    return made


def test_a_stage_is_trained_as_the_shipped_pack_was(tmp_path: Path) -> None:
    """The loop that trained it, written out."""
    expected = Linear()
    optimizer = torch.optim.AdamW(expected.linear.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01)
    place = ["captioner", "critic", "finetune", "joint", "judge", "prior"].index("captioner")
    for step in range(45):
        draw = torch.Generator().manual_seed(hash((1, place, step)) % 2**62)
        at = torch.randint(30, (8,), generator=draw)
        codes = torch.from_numpy(LINEAR.codes[at.numpy()])
        target = codes + 0.1 * torch.randn(codes.shape, generator=draw)
        value = (expected.linear(codes) - target).square().mean()
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / 45))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(expected.linear.parameters(), 1.0)
        optimizer.step()
    given = linear_training(tmp_path)
    for name, value in expected.linear.state_dict().items():
        assert torch.equal(value, given.linear.state_dict()[name])


def test_a_stage_that_gives_no_numbers_ends_and_keeps_its_weights(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"captioner: expected a finite loss, got none at 9 steps in a row"):
        linear_training(tmp_path, nan_from=20)
    stored = load_file(tmp_path / "captioner.safetensors")
    assert all(torch.isfinite(value).all() for value in stored.values())


def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in small_stage_settings(train.STAGES).items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(train, "draw_sample", functools.cache(draw_sample))


def test_a_training_stopped_in_every_stage_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk(monkeypatch)
    whole = train.train(tmp_path / "whole", seed=2, effort=0.0)
    assert all(fitted.skipped == 0 for fitted in whole.stages.values())
    for stage in whole.stages:
        with monkeypatch.context() as stopping:
            stopping.setattr(train, "fit", functools.partial(stopped_fit, stage=stage))
            with pytest.raises(KeyboardInterrupt):
                train.train(tmp_path / "parts", seed=2, effort=0.0, resume=True)
    parts = train.train(tmp_path / "parts", seed=2, effort=0.0, resume=True)
    files = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert files == [f"{name}.safetensors" for name in sorted(whole.stages)]
    for name in ("judge", "critic", "embedder", "decoder", "text", "projection", "prior", "captioner"):
        for key, value in getattr(whole, name).state_dict().items():
            assert torch.isfinite(value).all()
            assert torch.equal(value, getattr(parts, name).state_dict()[key]), (name, key)
    assert torch.equal(whole.tokens, parts.tokens)

    with pytest.raises(TrainingError, match=r"judge\.safetensors: .*seed: expected 3, got 2.*start anew"):
        train.train(tmp_path / "parts", seed=3, effort=0.0, resume=True)
    with pytest.raises(TrainingError, match=r"judge\.safetensors: .*steps: expected 5, got 3"):
        train.train(tmp_path / "parts", seed=2, effort=5 / 3, resume=True)
    (tmp_path / "whole" / "checkpoints" / "joint.pt").touch()
    with pytest.raises(TrainingError, match=r"joint\.pt: expected checkpoints in safetensors"):
        train.train(tmp_path / "whole", seed=2, effort=0.0, resume=True)


def stopped_fit(
    objective: torch.nn.Module,
    draw_batch: Callable[[torch.Generator], Batch],
    plan: train.StagePlan,
    *,
    stage: str,
    **how: Any,
) -> Fitted:
    """`fit`, interrupted after two steps of a stage."""
    drawn = 0

    def counted(draw: torch.Generator) -> Batch:
        nonlocal drawn
        drawn += 1
        if plan.name == stage and drawn == 3:
            raise KeyboardInterrupt
        return draw_batch(draw)

    return fit(objective, counted, plan, **how)
