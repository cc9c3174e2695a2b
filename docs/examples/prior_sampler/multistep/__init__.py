"""DPM-Solver++ for the prior: each step also uses what the network said at the one before (Lu et al. 2022)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rtdecode.decode.sampling.ddpm import Predict
from rtdecode.decode.sampling.schedule import CosineSchedule


class MultistepSampler:
    """A `PriorSampler` of second order; it draws no noise but the start.

    Parameters
    ----------
    schedule : CosineSchedule
    steps : int
        Evaluations of the network.

    Raises
    ------
    ValueError
        `steps` is not from 1 to the number of noise levels.
    """

    draws = 1

    def __init__(self, schedule: CosineSchedule, steps: int) -> None:
        if not 1 <= steps <= schedule.timesteps:
            raise ValueError(f"steps: expected 1 to {schedule.timesteps}, got {steps}")
        self._left = schedule.alphas_cumprod.astype(np.float64)
        self._levels = [int(t) for t in np.linspace(schedule.timesteps - 1, 0, steps, endpoint=False)]

    def sample(self, predict: Predict, noise: Sequence[Any]) -> Any:
        """Follow the probability flow in half log signal-to-noise ratio; see `PriorSampler.sample`."""
        x, before, step_before = noise[0], None, 0.0
        for t, after in itertools.pairwise(self._levels):
            clean = predict(x, t)
            step = self._half_log_snr(after) - self._half_log_snr(t)
            told = clean
            if before is not None:
                share = 0.5 * step / step_before
                told = clean * (1 + share) - before * share
            kept = math.sqrt((1 - self._left[after]) / (1 - self._left[t]))
            x = x * kept - told * (math.sqrt(self._left[after]) * math.expm1(-step))
            before, step_before = clean, step
        return predict(x, self._levels[-1])

    def _half_log_snr(self, t: int) -> float:
        return 0.5 * math.log(self._left[t] / (1 - self._left[t]))
