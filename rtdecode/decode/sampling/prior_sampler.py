"""Samplers of a diffusion prior, by the name that a pack gives; one of another package is found by its entry point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from rtdecode.decode.sampling.ddpm import Predict, count_draws, sample_prior
from rtdecode.decode.sampling.few import few_times, sample_consistency, sample_few
from rtdecode.decode.sampling.schedule import CosineSchedule
from rtdecode.errors import EngineError

GROUP = "rtdecode.prior_samplers"
"""Entry points: the name is what packs say, the object takes a `CosineSchedule` and a number of steps."""


class PriorSampler(Protocol):
    """Makes clean tokens of noise, in a number of steps that is fixed when it is made."""

    @property
    def draws(self) -> int:
        """Standard normal draws that `sample` takes."""
        ...

    def sample(self, predict: Predict, noise: Sequence[Any]) -> Any:
        """Sample clean tokens.

        Parameters
        ----------
        predict : callable
            Noisy tokens and their noise level (a whole number, 0 is the least) to clean tokens.
        noise : sequence of `draws` arrays
            Of the tokens' shape, the start first; numpy arrays or torch tensors.

        Returns
        -------
        array
            Of the kind, shape and type of the noise; the same for the same noise.
        """
        ...


class PublishedSampler:
    """DDPM at the full number of steps, DDIM with eta 1 below it; see `sample_prior`.

    Parameters
    ----------
    schedule : CosineSchedule
    steps : int

    Raises
    ------
    ValueError
        `steps` is not from 2 to the number of noise levels.
    """

    def __init__(self, schedule: CosineSchedule, steps: int) -> None:
        self._schedule = schedule
        self._steps = steps
        self.draws = count_draws(schedule.timesteps, steps)

    def sample(self, predict: Predict, noise: Sequence[Any]) -> Any:
        """Sample clean tokens; see `PriorSampler.sample`."""
        return sample_prior(predict, noise, self._schedule, steps=self._steps)


class FewStepSampler:
    """DDIM with eta 0 through few evenly spaced levels, for networks that give the mean; see `sample_few`.

    Parameters
    ----------
    schedule : CosineSchedule
    steps : int
        Evaluations.

    Raises
    ------
    ValueError
        `steps` is not from 1 to the number of noise levels.
    """

    draws = 1

    def __init__(self, schedule: CosineSchedule, steps: int) -> None:
        self._alphas = schedule.alphas_cumprod
        self._times = few_times(schedule.timesteps, steps)

    def sample(self, predict: Predict, noise: Sequence[Any]) -> Any:
        """Sample clean tokens; see `PriorSampler.sample`."""
        return sample_few(predict, noise[0], self._alphas, self._times)


class ConsistencySampler:
    """Fresh noise at each of few evenly spaced levels, for consistency students; see `sample_consistency`.

    Parameters
    ----------
    schedule : CosineSchedule
    steps : int
        Evaluations.

    Raises
    ------
    ValueError
        `steps` is not from 1 to the number of noise levels.
    """

    def __init__(self, schedule: CosineSchedule, steps: int) -> None:
        self._alphas = schedule.alphas_cumprod
        self._times = few_times(schedule.timesteps, steps)
        self.draws = steps

    def sample(self, predict: Predict, noise: Sequence[Any]) -> Any:
        """Sample clean tokens; see `PriorSampler.sample`."""
        return sample_consistency(predict, noise, self._alphas, self._times)


_OWN: dict[str, Callable[[CosineSchedule, int], PriorSampler]] = {
    "published": PublishedSampler,
    "few": FewStepSampler,
    "consistency": ConsistencySampler,
}


def prior_sampler(name: str, schedule: CosineSchedule, steps: int) -> PriorSampler:
    """Make the sampler of a name.

    Raises
    ------
    EngineError
        There is none of that name, or it does not do so many steps.
    """
    make = _OWN.get(name)
    if make is None:
        others = {point.name: point for point in entry_points(group=GROUP)}
        if name not in others:
            raise EngineError(f"prior sampler: expected one of {', '.join(sorted({*_OWN, *others}))}, got {name!r}")
        make = others[name].load()
    try:
        sampler: PriorSampler = make(schedule, steps)
    except ValueError as error:
        raise EngineError(f"prior sampler {name}: {error}") from None
    return sampler
