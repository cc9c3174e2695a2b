"""Consistency distillation in the manner of latent consistency models (torch). Import inside functions only.

Song et al. 2023 (consistency models), Luo et al. 2023 (guidance baked in, skipping-step solver).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.training.loop import Fitted, Plan, fit
from engines.training.state import Ema

Predict = Callable[[nn.Module, Tensor, Tensor, Any], Tensor]
"""Network, noisy values, their levels (n,) and conditions to clean values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a student is distilled.

    Attributes
    ----------
    skip : int
        Noise levels that the solver goes down at once.
    ema : float
        Decay of the target network, which is also the result.
    huber : float
        Error at which the loss turns from square to straight.
    offset : float
        Weight of one number a sample that is added to all of its noise, as the sampler does; 0 draws none.
    """

    skip: int
    ema: float = 0.98
    huber: float = 0.03
    offset: float = 0.0


class ConsistencyObjective(nn.Module):  # type: ignore[misc]
    """The student at a noise level is to give what its average gives a solver's step further down.

    Parameters
    ----------
    student : Module
        What is trained.
    predict : callable
        Applies the student, or its average.
    teacher : callable
        Noisy values, levels and conditions to the teacher's clean values, guided as the student shall be.
    ema : Ema
        Of the student.
    alphas_cumprod : ndarray of shape (levels,)
        Signal power left at each noise level.
    how : Distillation
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        predict: Predict,
        teacher: Callable[[Tensor, Tensor, Any], Tensor],
        ema: Ema,
        alphas_cumprod: NDArray[np.floating],
        how: Distillation,
    ) -> None:
        super().__init__()
        self.student = student
        self._apart = (predict, teacher, ema, torch.from_numpy(np.asarray(alphas_cumprod, dtype=np.float32)))
        self._how = how

    def forward(self, batch: tuple[Tensor, Any], draw: torch.Generator, _: float) -> Tensor:
        """Loss of clean values (n, ...) and their conditions, float32."""
        predict, teacher, ema, alphas = self._apart
        clean, condition = batch
        n, device = len(clean), clean.device
        t = torch.randint(len(alphas), (n,), generator=draw)
        below = t - self._how.skip
        left, left_below = alphas[t], alphas[below.clamp(min=0)]
        shape = (n, *[1] * (clean.ndim - 1))
        noise = torch.randn(clean.shape, generator=draw)
        if self._how.offset:
            noise = noise + self._how.offset * torch.randn(shape, generator=draw)
        noise = noise.to(device)
        a, b, a_below, b_below = (
            value.sqrt().reshape(shape).to(device) for value in (left, 1 - left, left_below, 1 - left_below)
        )
        noisy = a * clean + b * noise
        t, last = t.to(device), (below < 0).reshape(shape).to(device)
        with torch.no_grad():
            solved = teacher(noisy, t, condition).float()
            further = a_below * solved + b_below * (noisy - a * solved) / b
            target = predict(ema.module, further, below.clamp(min=0).to(device), condition).float()
            target = torch.where(last, solved, target)
        given = predict(self.student, noisy, t, condition).float()
        error = (given - target).square()
        return ((error + self._how.huber**2).sqrt() - self._how.huber).mean()


def distil(
    student: nn.Module,
    batches: Callable[[torch.Generator], tuple[Tensor, Any]],
    *,
    predict: Predict,
    teacher: Callable[[Tensor, Tensor, Any], Tensor],
    alphas_cumprod: NDArray[np.floating],
    how: Distillation,
    plan: Plan,
    folder: Path,
    resume: bool,
    accelerator: Accelerator | None = None,
) -> tuple[nn.Module, Fitted]:
    """Distil a teacher into `student`, which starts as a copy of it.

    Parameters are those of `ConsistencyObjective` and of `fit`.

    Returns
    -------
    Module
        The average of the student's weights.
    Fitted
    """
    ema = Ema(student, how.ema)
    plan = replace(plan, details={**plan.details, **asdict(how)})
    objective = ConsistencyObjective(
        student, predict=predict, teacher=teacher, ema=ema, alphas_cumprod=alphas_cumprod, how=how
    )
    fitted = fit(objective, batches, plan, folder=folder, resume=resume, ema=ema, accelerator=accelerator)
    return ema.module, fitted
