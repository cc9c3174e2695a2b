"""Train a `Tunable` on a calibration, judge it on trials it never met, and keep the step that these choose (torch).

Import this module inside functions only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.cross_fitting import Crossed
from engines.finetune.tunable import Tunable
from engines.training.loop import Plan
from engines.training.objective import MindEye2Objective
from engines.training.shared_model import Trials
from rtdecode.errors import TrainingError
from rtdecode.statistics import percentile_ranks

log = logging.getLogger(__name__)

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

TEMPERATURES = np.logspace(-3, 1, 41)
"""Of the softmax over cosines that says how surely a picture is found; the best of a step counts."""
DOUBT = 1.645
"""A step is kept if its gain is so many standard errors above 0: a single step, without any gain, in one of twenty."""
_FEWEST_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How a network is fine-tuned.

    Attributes
    ----------
    steps : int
        At most, with the learning rate falling to their end.
    every : int
        Steps between judgements.
    batch : int
        Trials at most.
    rate : float
        Largest learning rate.
    minutes : float
        Of all trainings together: so many steps are taken as fit into it.
    seed : int
    """

    steps: int = 100
    every: int = 10
    batch: int = 48
    rate: float = 2e-3
    minutes: float = 3.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """What networks say of trials that were set apart, at each judged step; the first is the closed-form start.

    Attributes
    ----------
    trials : ndarray of shape (q,), int64
    shown : ndarray of shape (q,), int64
        Place of each trial's picture among the pictures.
    cosines : ndarray of shape (steps, q, p)
        Of the tokens found with those of the pictures that were set apart.
    errors : ndarray of shape (steps, q)
        Squared errors of clean tokens.
    """

    trials: Ints
    shown: Ints
    cosines: Float64
    errors: Float64

    def ranks(self, step: int) -> Float64:
        """Percentile rank (q,) of each trial's picture."""
        return np.asarray(percentile_ranks(self.cosines[step])[np.arange(len(self.shown)), self.shown])


def train(
    tunable: Tunable,
    crossed: Crossed,
    shown: Ints,
    tokens: Tensor,
    tuning: Tuning,
    *,
    number: int,
    last: int,
) -> Judged:
    """Train on the trials of `crossed`, and judge those that were set apart.

    Parameters
    ----------
    tunable : Tunable
        Becomes the closed-form decoder first; afterwards it is what `last` steps have made of it.
    crossed : Crossed
    shown : ndarray of shape (n,), int64
        Picture of each trial, a row of `tokens`.
    tokens : Tensor of shape (p, t, d)
    tuning : Tuning
    number : int
        Of this training: another one draws other batches.
    last : int
        Steps to take.

    Raises
    ------
    TrainingError
        The loss is not finite.
    """
    draw = torch.Generator().manual_seed((tuning.seed << 8) + number)
    tunable.begin(crossed.adapter, draw)
    trained = [value for value in tunable.parameters() if value.requires_grad]
    plan = Plan(name="finetune", steps=tuning.steps, rate=tuning.rate, warm_up=min(20, tuning.steps // 5))
    objective = MindEye2Objective(tunable, tunable.schedule, tunable.weights, tunable.precision)
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, weight_decay=plan.weight_decay)
    decoded = torch.from_numpy(crossed.decoded).to(tunable.device)
    rows = torch.from_numpy(shown[crossed.rows])
    judge = _Judge(tunable, crossed, shown, tokens)
    judge.look()
    if last:
        tunable.leave_start()
    for step in range(last):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        at = torch.randperm(len(decoded), generator=draw)[: tuning.batch]
        trials = Trials(
            participant=0,
            betas=decoded[at.to(decoded.device)],
            tokens=tunable.targets(tokens[rows[at].to(tokens.device)]),
            latent=None,
            teacher=None,
            teacher_augmented=None,
            rows=rows[at],
        )
        loss = objective([trials], draw, step / tuning.steps)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip_norm)
        if not bool(torch.isfinite(loss.detach()) & torch.isfinite(norm)):
            raise TrainingError(
                f"fine-tuning: expected a finite loss, got {float(loss):g} at step {step}: give a lower --rate than "
                f"{tuning.rate:g}"
            )
        optimizer.step()
        if (step + 1) % tuning.every == 0:
            judge.look()
    return judge.judged()


def steps_within(
    tunable: Tunable, crossed: Crossed, shown: Ints, tokens: Tensor, tuning: Tuning, trainings: int
) -> int:
    """Return how many steps of each training fit into the time there is."""
    began = time.monotonic()
    train(tunable, crossed, shown, tokens, tuning, number=0, last=_FEWEST_STEPS)
    each = (time.monotonic() - began) / _FEWEST_STEPS
    fitting = int(60 * tuning.minutes / trainings / max(each, 1e-6))
    if fitting < tuning.every:
        raise TrainingError(
            f"fine-tuning: expected time for {tuning.every} steps of {trainings} trainings, got {tuning.minutes:g} "
            f"minutes at {each:.1f} s a step: give it --minutes {trainings * tuning.every * each / 60:.1f} or more"
        )
    return min(tuning.steps, fitting // tuning.every * tuning.every)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """Which step is kept.

    Attributes
    ----------
    step : int
        Place among the judged ones; 0 is the closed-form start.
    gain : float
        What it lost less than the start, mean over pictures.
    error : float
        Standard error of the gain.
    """

    step: int
    gain: float
    error: float


def choose(judged: Sequence[Judged]) -> Choice:
    """Choose the step at which trials that were set apart are found best; the start, unless another is surely better.

    What a trial loses: minus the log-probability of its picture among those that were set apart with it, plus its
    squared error in units of the start's mean one.
    """
    losses = [_losses(judged, step) for step in range(len(judged[0].errors))]
    pictures = np.concatenate([1_000_000 * place + one.shown for place, one in enumerate(judged)])
    _, which = np.unique(pictures, return_inverse=True)
    count = np.bincount(which)
    start = np.bincount(which, losses[0]) / count
    best = Choice(step=0, gain=0.0, error=0.0)
    for step, loss in enumerate(losses):
        gains = start - np.bincount(which, loss) / count
        gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
        if gain > DOUBT * error and gain > best.gain:
            best = Choice(step=step, gain=gain, error=error)
    return best


def _losses(judged: Sequence[Judged], step: int) -> Float64:
    unit = np.concatenate([one.errors[0] for one in judged]).mean()
    errors = np.concatenate([one.errors[step] for one in judged]) / unit
    by_temperature = [np.concatenate([_surprise(one, step, t) for one in judged]) for t in TEMPERATURES]
    return np.asarray(errors + min(by_temperature, key=lambda surprise: float(surprise.sum())))


def _surprise(one: Judged, step: int, temperature: float) -> Float64:
    logits = one.cosines[step] / temperature
    own = logits[np.arange(len(one.shown)), one.shown]
    top = logits.max(1)
    return np.asarray(np.log(np.exp(logits - top[:, None]).sum(1)) + top - own)


class _Judge:
    def __init__(self, tunable: Tunable, crossed: Crossed, shown: Ints, tokens: Tensor) -> None:
        self._tunable = tunable
        self._trials = crossed.apart
        self._decoded = torch.from_numpy(crossed.apart_decoded).to(tunable.device)
        pictures, self._shown = np.unique(shown[crossed.apart], return_inverse=True)
        self._pictures = tokens[torch.from_numpy(pictures).to(tokens.device)]
        self._cosines: list[Float64] = []
        self._errors: list[Float64] = []

    def look(self) -> None:
        """Judge as the network is now."""
        if not len(self._trials):
            return
        self._tunable.eval()
        with torch.no_grad():
            ours = torch.nn.functional.normalize(self._tunable.found(self._decoded).float(), dim=1)
            theirs = torch.nn.functional.normalize(self._pictures.float().flatten(1), dim=1)
            shown = self._pictures[torch.from_numpy(self._shown).to(self._pictures.device)]
            self._cosines.append((ours @ theirs.T).double().cpu().numpy())
            self._errors.append(self._tunable.errors(self._decoded, shown).double().cpu().numpy())
        self._tunable.train()

    def judged(self) -> Judged:
        empty = np.zeros((0, len(self._trials)))
        return Judged(
            trials=self._trials,
            shown=np.asarray(self._shown, np.int64),
            cosines=np.stack(self._cosines) if self._cosines else np.zeros((0, len(self._trials), 0)),
            errors=np.stack(self._errors) if self._errors else empty,
        )
