"""Whether a response is one at all: the direction from rest, and how much rest it takes to say so."""

from __future__ import annotations

import numpy as np

from calibration.encoding.encoder import Encoder, Inverted
from calibration.encoding.inverse import Inverse, Noise
from calibration.signal import FEWEST, find_signal
from rtdecode.decode.score.evidence import SIGNAL_LEVEL
from rtdecode.statistics import p_value

N_VOXELS, RUNS, PER_RUN = 12, 4, 10
RNG = np.random.default_rng(0)
SHARED, OWN = RNG.standard_normal((2, N_VOXELS)).astype(np.float32), RNG.uniform(0.5, 2, N_VOXELS).astype(np.float32)
RUN = np.repeat(np.arange(1, RUNS + 1), PER_RUN)


def encoder() -> Encoder:
    inverse = Inverse(
        projection=np.zeros((1, N_VOXELS), np.float32), information=np.eye(1), mean=np.zeros(N_VOXELS, np.float32)
    )
    one = Inverted(voxels=RNG.permutation(N_VOXELS), inverse=inverse, noise=Noise(shared=SHARED, own=OWN))
    parts = tuple(np.flatnonzero(run == RUN) for run in range(1, RUNS + 1))
    return Encoder(whole=one, held=(one,) * RUNS, parts=parts, weights={})


def scanned(n_rest: int, response: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    noise = RNG.standard_normal((len(RUN) + n_rest, N_VOXELS)) + RNG.standard_normal((len(RUN) + n_rest, 2)) @ SHARED
    noise = noise.astype(np.float32)
    return noise[: len(RUN)] + np.float32(response), noise[len(RUN) :], 1 + np.arange(n_rest) % RUNS


def test_the_direction_is_that_of_a_discriminant_of_the_noise() -> None:
    model = encoder()
    responses, rest, rest_run = scanned(40, 1.0)
    found = find_signal(model, responses, RUN, rest, rest_run, model.parts)
    order = model.whole.voxels
    covariance = SHARED.T @ SHARED + np.diag(OWN)
    apart = (responses.mean(0) - rest.mean(0))[order]
    expected = np.linalg.solve(covariance, apart)
    np.testing.assert_allclose(found.weights, expected / np.sqrt(apart @ expected), rtol=1e-3, atol=1e-5)


def test_rest_is_judged_by_a_direction_that_has_not_seen_its_run() -> None:
    model = encoder()
    responses, rest, rest_run = scanned(40, 1.0)
    first = find_signal(model, responses, RUN, rest, rest_run, model.parts)
    changed = np.where((rest_run == 2)[:, None], rest + 100, rest).astype(np.float32)
    again = find_signal(model, responses, RUN, changed, rest_run, model.parts)
    inside = rest_run == 2
    moved = again.rest[inside] - first.rest[inside]
    np.testing.assert_allclose(moved, moved[0], atol=1e-2)  # along the same direction, all by as much
    assert abs(moved[0]) > 1


def test_so_little_rest_that_nothing_could_be_told_from_it_is_not_used() -> None:
    model = encoder()
    for n_rest, used in ((FEWEST - 1, False), (FEWEST, True)):
        responses, rest, rest_run = scanned(n_rest, 20.0)
        found = find_signal(model, responses, RUN, rest, rest_run, model.parts)
        assert (len(found.weights) > 0, len(found.rest) > 0) == (used, used)
        if used:  # the clearest response passes
            assert p_value(found.rest, 1e9) <= SIGNAL_LEVEL


def test_rest_of_one_run_alone_is_not_used() -> None:
    model = encoder()
    responses, rest, _ = scanned(30, 1.0)
    found = find_signal(model, responses, RUN, rest, np.ones(30, np.int64), model.parts)
    assert len(found.weights) == 0
