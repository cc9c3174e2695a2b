"""Consistency distillation, where the answer is known: the flow of Gaussian data."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from engines.distill.consistency import ConsistencyObjective, Distillation, distil  # noqa: E402
from engines.training.loop import Plan  # noqa: E402
from engines.training.state import Ema  # noqa: E402
from rtdecode.decode.sampling.schedule import cosine_schedule  # noqa: E402

SCHEDULE = cosine_schedule(100)
ALPHAS = torch.from_numpy(SCHEDULE.alphas_cumprod)
DEVIATION = 0.5


def posterior_mean(noisy: torch.Tensor, t: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Teacher: clean values given noisy ones, for a Gaussian about the condition."""
    a = ALPHAS[t][:, None]
    gain = a.sqrt() * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
    return mean + gain * (noisy - a.sqrt() * mean)


class Affine(torch.nn.Module):
    """A gain for each noise level: all that the flow of this data needs. It starts as the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(ALPHAS.sqrt() * DEVIATION**2 / (ALPHAS * DEVIATION**2 + 1 - ALPHAS))

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return mean + self.gain[t][:, None] * (noisy - ALPHAS[t].sqrt()[:, None] * mean)


def batches(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.randn(256, 1, generator=draw)
    return mean + DEVIATION * torch.randn(256, 4, generator=draw), mean


def student(folder: Path, *, steps: int = 600, resume: bool = False) -> torch.nn.Module:
    return distil(
        Affine(),
        batches,
        predict=lambda network, noisy, t, given: network(noisy, t, given),
        teacher=posterior_mean,
        alphas_cumprod=SCHEDULE.alphas_cumprod,
        how=Distillation(skip=4, ema=0.95, huber=1.0),
        plan=Plan(name="toy", steps=steps, rate=2e-2, weight_decay=0.0, save_every_s=0.0 if steps < 50 else 1e9),
        folder=folder,
        resume=resume,
    )[0]


def test_one_step_of_the_student_is_the_whole_flow(tmp_path: Path) -> None:
    made = student(tmp_path)
    noise = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    mean, last = torch.zeros(4000, 1), torch.full((4000,), 99)
    with torch.no_grad():
        before, after = posterior_mean(noise, last, mean), made(noise, last, mean)
    # One step of the teacher gives hardly more than the mean; the flow gives back the data's deviation.
    assert float(before.std()) < 0.1
    assert float(after.std()) == pytest.approx(DEVIATION, abs=0.05)
    assert float((after - DEVIATION * noise).abs().mean()) < 0.05


def test_a_resumed_distillation_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = student(tmp_path / "a", steps=12)
    student(tmp_path / "b", steps=12)
    again = student(tmp_path / "b", steps=12, resume=True)
    assert torch.equal(whole.gain, again.gain)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_noise_is_offset_in_training_as_the_sampler_does(offset: float) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(_: torch.nn.Module, noisy: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append((noisy, t))
        return noisy

    network = Affine()
    objective = ConsistencyObjective(
        network,
        predict=watched,
        teacher=lambda noisy, t, given: noisy,
        ema=Ema(network, 0.9),
        alphas_cumprod=SCHEDULE.alphas_cumprod,
        how=Distillation(skip=4, offset=offset),
    )
    nothing = torch.zeros(4000, 4, 4, 4)
    objective((nothing, None), torch.Generator().manual_seed(0), 0.0)
    noisy, t = seen[-1]
    noise = noisy / (1 - ALPHAS[t]).sqrt()[:, None, None, None]
    # The mean over a sample's 64 values has their variance over 64, and the offset's own on top.
    assert float(noise.mean((1, 2, 3)).std()) == pytest.approx((1 / 64 + offset**2) ** 0.5, rel=0.05)
    assert float((noise - noise.mean((1, 2, 3), keepdim=True)).std()) == pytest.approx(1, rel=0.02)
