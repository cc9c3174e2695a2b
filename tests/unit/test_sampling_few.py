"""Few-step sampling against the exact solution for Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.decode.sampling.edm import euler, euler_times, network_sigmas, renoised
from rtdecode.decode.sampling.few import few_times, sample_consistency, sample_few
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


def perfect_student(x: np.ndarray, t: int) -> np.ndarray:
    """End of the probability flow of standard normal data, along which nothing changes."""
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_student_keeps_the_variance_however_often_it_is_called(steps: int) -> None:
    noise = np.random.default_rng(steps).standard_normal((steps, 100_000))
    made = sample_consistency(perfect_student, list(noise), ALPHAS, few_times(100, steps))
    assert made.std() == pytest.approx(1, abs=0.01)
    assert made.mean() == pytest.approx(0, abs=0.02)
    if steps == 2:  # what the other solver does of the same student
        assert sample_few(perfect_student, noise[0], ALPHAS, few_times(100, 2)).std() > 1.4


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_unclip_keeps_the_variance_too(steps: int) -> None:
    times, sigmas = euler_times(steps)
    rng = np.random.default_rng(steps)
    start, *noise = rng.standard_normal((steps, 100_000))
    latent = rng.standard_normal(start.shape)

    def predict(x: np.ndarray, t: int) -> np.ndarray:  # the noise that leaves the end of the flow
        sigma = float(network_sigmas()[t])
        return (x * np.sqrt(1 + sigma**2) - x) / sigma

    first = latent + start * float(sigmas[0])
    assert renoised(predict, first, noise, times, sigmas).std() == pytest.approx(1, abs=0.01)
    if steps == 2:
        assert abs(euler(predict, first, times, sigmas).std() - 1) > 0.2


def test_one_step_of_either_solver_is_the_same() -> None:
    times, sigmas = euler_times(1)
    x = np.random.default_rng(0).standard_normal(50)
    np.testing.assert_allclose(
        renoised(lambda x, _: 0.3 * x, x, [], times, sigmas), euler(lambda x, _: 0.3 * x, x, times, sigmas)
    )
