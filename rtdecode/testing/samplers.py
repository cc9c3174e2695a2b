"""What every `PriorSampler` does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.sampling.prior_sampler import PriorSampler
from rtdecode.decode.sampling.schedule import CosineSchedule, cosine_schedule
from rtdecode.testing.refusals import refused

_LEVELS = 100
_SHAPE = (1, 4, 16)


def check_prior_sampler(make: Callable[[CosineSchedule, int], PriorSampler], *, steps: int) -> None:
    """Check a sampler.

    Parameters
    ----------
    make : callable
        Takes a schedule (of 100 noise levels here) and a number of steps.
    steps : int
        A number that it does.

    Raises
    ------
    AssertionError
    """
    schedule = cosine_schedule(_LEVELS)
    sampler = make(schedule, steps)
    assert sampler.draws >= 1, f"draws: expected at least 1, got {sampler.draws}"
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((sampler.draws, *_SHAPE), dtype=np.float32)
    wanted = rng.standard_normal(_SHAPE, dtype=np.float32)
    levels: list[int] = []

    def certain(_: Any, t: int) -> NDArray[np.float32]:
        assert isinstance(t, int), f"level: expected an int, got {type(t).__name__}"
        levels.append(t)
        return wanted

    found = sampler.sample(certain, list(noise.copy()))
    assert np.shape(found) == _SHAPE, f"expected shape {_SHAPE}, got {np.shape(found)}"
    np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg="a network that is certain is not believed")
    assert levels, "the network was never called"
    assert all(0 <= t < _LEVELS for t in levels), f"levels: expected 0 to {_LEVELS - 1}, got {levels}"

    kept = noise.copy()
    first = sampler.sample(_posterior_mean(schedule), list(noise))
    np.testing.assert_array_equal(noise, kept, "the noise was changed")
    second = make(schedule, steps).sample(_posterior_mean(schedule), list(noise))
    np.testing.assert_array_equal(first, second, "the same noise gave other tokens")
    assert np.asarray(first).dtype == np.float32, f"expected float32, got {np.asarray(first).dtype}"
    other = sampler.sample(_posterior_mean(schedule), list(-noise))
    assert not np.array_equal(first, other), "the noise makes no difference"
    _check_on_torch(sampler, schedule, noise, first)
    for wrong in (0, _LEVELS + 1):
        with refused(f"{wrong} steps", ValueError):
            make(schedule, wrong)


def _posterior_mean(schedule: CosineSchedule) -> Callable[[Any, int], Any]:
    """Return what a perfect network says of tokens that are normal with variance 1/4."""
    variance = 0.25

    def predict(x: Any, t: int) -> Any:
        left = float(schedule.alphas_cumprod[t])
        return x * (left**0.5 * variance / (left * variance + 1 - left))

    return predict


def _check_on_torch(
    sampler: PriorSampler, schedule: CosineSchedule, noise: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    found = sampler.sample(_posterior_mean(schedule), list(torch.from_numpy(noise)))
    assert isinstance(found, torch.Tensor), f"of tensors: expected a tensor, got {type(found).__name__}"
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, err_msg="tensors and arrays give other tokens")
