"""The training loop: resumable to the last bit, averaged, and deaf to steps that are not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file, save_file  # noqa: E402

from engines.training.loop import Plan, fit  # noqa: E402
from engines.training.state import Ema  # noqa: E402
from rtdecode.errors import TrainingError  # noqa: E402

FIELDS = ("schema", "plan", "processes", "step", "seconds", "skipped", "averaged")
PLAN = Plan(name="small", steps=30, rate=1e-2, warm_up=5, save_every_s=0.0)


class Regression(torch.nn.Module):
    """Fits a line with dropout; may be told to stop or to give no number."""

    def __init__(self, *, stop_at: int | None = None, nan_at: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.line = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
        self.calls: list[int] = []
        self._stop_at, self._nan_at = stop_at, nan_at

    def forward(self, batch: torch.Tensor, draw: torch.Generator, progress: float) -> torch.Tensor:
        step = round(progress * PLAN.steps)
        if step == self._stop_at:
            raise KeyboardInterrupt
        self.calls.append(step)
        error = self.line(batch) - batch.sum(1, keepdim=True) + 0.1 * torch.randn(len(batch), 1, generator=draw)
        return error.square().mean() * (float("nan") if step in self._nan_at else 1.0)


def batches(draw: torch.Generator) -> torch.Tensor:
    return torch.randn(8, 4, generator=draw)


def trained(folder: Path, *, resume: bool = False, **how: object) -> tuple[Regression, Ema]:
    objective = Regression(**how)  # type: ignore[arg-type]
    ema = Ema(objective, 0.9)
    fit(objective, batches, PLAN, folder=folder, resume=resume, ema=ema)
    return objective, ema


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, whole_ema = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop_at=17)
    parts, parts_ema = trained(tmp_path / "parts", resume=True)
    assert parts.calls == list(range(17, 30))
    for a, b in ((whole, parts), (whole_ema.module, parts_ema.module)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name])


def test_another_number_of_processes_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_at=17)
    path = tmp_path / "small.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["training"])
    save_file(load_file(path), path, metadata={"training": json.dumps({**facts, "processes": 2})})
    parts, _ = trained(tmp_path, resume=True)
    assert parts.calls == list(range(17, 30))
    assert "1 processes go on where 2 left off" in caplog.text


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    objective = Regression(nan_at=(12,))
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    forward = objective.forward

    def watched(batch: torch.Tensor, draw: torch.Generator, progress: float) -> torch.Tensor:
        at = {12: before, 13: after}.get(round(progress * PLAN.steps), {})
        at.update({name: value.clone() for name, value in objective.state_dict().items()})
        return forward(batch, draw, progress)

    objective.forward = watched  # type: ignore[method-assign]
    fitted = fit(objective, batches, PLAN, folder=tmp_path, resume=False)
    assert fitted.skipped == 1
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())


class Normalised(torch.nn.Module):
    """Standardises its batches, of which some hold no number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def forward(self, batch: torch.Tensor, draw: torch.Generator, progress: float) -> torch.Tensor:
        bad = round(progress * PLAN.steps) in (4, 5)
        return self.body(batch * float("nan") if bad else batch).square().mean()


def test_a_step_that_is_not_finite_leaves_no_trace_in_batch_statistics(tmp_path: Path) -> None:
    objective = Normalised()
    assert fit(objective, batches, PLAN, folder=tmp_path, resume=False).skipped == 2
    norm = objective.body[0]
    assert int(norm.num_batches_tracked) == PLAN.steps - 2
    expected = torch.zeros(4)
    for step in range(PLAN.steps):
        if step not in (4, 5):
            mean = batches(torch.Generator().manual_seed(PLAN.seed_at(step, 0))).mean(0)
            expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(norm.running_mean, expected)


def test_many_steps_in_a_row_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"got none at 9 steps in a row .*lower the learning rate"):
        fit(Regression(nan_at=tuple(range(5, 30))), batches, PLAN, folder=tmp_path, resume=False)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    objective = Regression()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    for changed, told in (
        ({"seed": 1}, "seed: expected 1, got 0"),
        ({"steps": 31, "beta2": 0.9}, "beta2: expected 0.9, got 0.999; steps: expected 31, got 30"),
        ({"details": {"loss": {"prior": 2.0}}}, r"details\.loss\.prior: expected 2\.0, got None"),
    ):
        with pytest.raises(TrainingError, match=rf"small\.safetensors: a checkpoint of another training \({told}\)"):
            fit(objective, batches, replace(PLAN, **changed), folder=tmp_path, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    fit(objective, batches, replace(PLAN, save_every_s=9.0), folder=tmp_path, resume=True)
    (tmp_path / "small.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        fit(Regression(), batches, PLAN, folder=tmp_path, resume=True)


def test_details_that_json_writes_otherwise_are_the_same(tmp_path: Path) -> None:
    plan = replace(PLAN, details={"steps": (1, 2), "noise": {"rate": 0.1}})
    first, again = Regression(), Regression()
    fit(first, batches, plan, folder=tmp_path, resume=False)
    fit(again, batches, plan, folder=tmp_path, resume=True)
    assert again.calls == []
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda header, name=name: {key: value for key, value in header.items() if key != name} for name in FIELDS),
        *(lambda header, name=name: {**header, name: "much"} for name in FIELDS),
        lambda header: {**header, "schema": 2},
        lambda header: {**header, "more": 1},
    ],
)
def test_a_header_that_is_not_one_is_refused(
    spoil: Callable[[dict[str, object]], dict[str, object]], tmp_path: Path
) -> None:
    path = tmp_path / "small.safetensors"
    fit(Regression(stop_at=None), batches, replace(PLAN, steps=1), folder=tmp_path, resume=False)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["training"])
    assert header.keys() == set(FIELDS)
    save_file(load_file(path), path, metadata={"training": json.dumps(spoil(header))})
    with pytest.raises(TrainingError, match=r"small\.safetensors: not a checkpoint of this training"):
        fit(Regression(), batches, replace(PLAN, steps=1), folder=tmp_path, resume=True)


def test_the_average_is_the_sum_of_the_past_with_falling_weights() -> None:
    line = torch.nn.Linear(2, 2)
    ema = Ema(line, 0.5)
    expected = line.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            line.weight.normal_()
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * line.weight.detach()
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.weight.requires_grad


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [PLAN.rate_at(step) for step in range(PLAN.steps)]
    assert rates[0] == pytest.approx(PLAN.rate / 25)
    assert max(rates) == rates[PLAN.warm_up] == pytest.approx(PLAN.rate)
    assert rates[: PLAN.warm_up + 1] == sorted(rates[: PLAN.warm_up + 1])
    assert rates[PLAN.warm_up :] == sorted(rates[PLAN.warm_up :], reverse=True)
    assert rates[-1] < 0.01 * PLAN.rate
