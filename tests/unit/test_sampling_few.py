"""Few-step sampling against the exact solution for Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.decode.sampling.few import few_times, sample_few
from rtdecode.decode.sampling.schedule import cosine_schedule

MEAN, DEVIATION = 3.0, 0.5
ALPHAS = cosine_schedule(100).alphas_cumprod


def posterior_mean(x: np.ndarray, t: int) -> np.ndarray:
    """Clean value given a noisy one, for data of one Gaussian."""
    a = float(ALPHAS[t])
    gain = np.sqrt(a) * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
    return MEAN + gain * (x - np.sqrt(a) * MEAN)


def test_times_fall_from_the_noisiest_level() -> None:
    assert few_times(100, 1) == [99]
    assert few_times(100, 2) == [99, 49]
    assert few_times(1000, 4) == [999, 749, 499, 249]
    assert few_times(100, 100) == list(range(99, -1, -1))
    for steps in (0, 101):
        with pytest.raises(ValueError, match="expected 1 to 100"):
            few_times(100, steps)


def test_one_step_is_the_network_and_many_are_the_probability_flow() -> None:
    noise = np.random.default_rng(0).standard_normal(500)
    np.testing.assert_array_equal(sample_few(posterior_mean, noise, ALPHAS, [99]), posterior_mean(noise, 99))
    # The flow of Gaussian data maps the quantiles of the noise onto those of the data.
    exact = MEAN + DEVIATION * noise
    errors = [np.abs(sample_few(posterior_mean, noise, ALPHAS, few_times(100, n)) - exact).mean() for n in (2, 10, 100)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


def test_torch_gives_what_numpy_gives() -> None:
    torch = pytest.importorskip("torch")
    noise = np.random.default_rng(1).standard_normal((4, 3))
    ours = sample_few(posterior_mean, noise, ALPHAS, few_times(100, 4))
    theirs = sample_few(
        lambda x, t: torch.from_numpy(posterior_mean(x.numpy(), t)), torch.from_numpy(noise), ALPHAS, few_times(100, 4)
    )
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-12)
