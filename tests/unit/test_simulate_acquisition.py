from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from rtdecode.simulate import render
from rtdecode.simulate.acquisition import Acquisition, NoiseParameters
from rtdecode.simulate.participant import HRF_STEP_S, ResponseParameters, hrf_library, make_participant
from tests.unit.simulate_small import PLAN, PROTOCOL, participant

SILENT = NoiseParameters(
    thermal_tsnr=1e9,
    autoregressive=0.0,
    physiological=0.0,
    common=0.0,
    drift=0.0,
    motion_walk_mm=0.0,
    spikes=0,
    between_runs_mm=0.0,
)
TRIALS = PLAN.of_run(1)


def evoked() -> np.ndarray:
    return participant().responses([trial.scene for trial in TRIALS])


def run(
    noise: NoiseParameters, number: int = 1, n_volumes: int = 12, responses: np.ndarray | None = None
) -> np.ndarray:
    responses = evoked() if responses is None else responses
    return np.stack(list(Acquisition(participant(), noise).run(number, TRIALS, responses, n_volumes))).astype(float)


def at_rest(matrix: np.ndarray) -> np.ndarray:
    """Resample the head with scipy: the independent way."""
    head = participant().head
    affine = np.linalg.inv(head.affine) @ matrix @ PROTOCOL.affine
    points = affine[:3, :3] @ np.indices(PROTOCOL.shape).reshape(3, -1) + affine[:3, 3:]
    values = ndimage.map_coordinates(head.signal, points, order=3, mode="constant")
    return np.maximum(values, 0).reshape(PROTOCOL.shape)


def test_splines_agree_with_scipy() -> None:
    field = np.random.default_rng(0).standard_normal((20, 18, 16)).astype(np.float32)
    coefficients = ndimage.spline_filter(field, order=3, output=np.float32, mode="mirror")
    voxels = np.argwhere(np.ones((9, 8, 7), bool))
    affine = np.eye(4)
    affine[:3] = [[1.1, 0.1, 0, 3.2], [-0.1, 1.05, 0.2, 4.3], [0, 0.1, 0.9, 4.1]]
    points = affine[:3, :3] @ voxels.T + affine[:3, 3:]
    expected = np.maximum(ndimage.map_coordinates(field, points, order=3), 0)
    np.testing.assert_allclose(render.sample(coefficients, affine, voxels), expected, atol=2e-5)


def test_a_still_head_is_the_head() -> None:
    volumes = run(SILENT, responses=np.zeros_like(evoked()), n_volumes=1)
    np.testing.assert_allclose(volumes[0], at_rest(np.eye(4)), atol=1.0)


def test_a_moving_head_is_resampled_where_it_is() -> None:
    noise = replace(SILENT, motion_walk_mm=1.0)
    acquisition = Acquisition(participant(), noise)
    motion = acquisition.motion(1, 4)
    volumes = run(noise, n_volumes=4)
    quiet = np.ones(PROTOCOL.shape, bool)
    quiet[tuple(participant().voxels.T)] = False
    quiet = ndimage.binary_erosion(quiet, iterations=3, border_value=1)
    for volume, matrix in zip(volumes, motion, strict=True):
        np.testing.assert_allclose(volume[quiet], at_rest(matrix)[quiet], atol=1.0)
    assert np.linalg.norm(motion[3][:3, 3]) > 0.5
    np.testing.assert_allclose(
        motion[:, :3, :3] @ motion[:, :3, :3].transpose(0, 2, 1), np.eye(3)[None].repeat(4, 0), atol=1e-12
    )


def test_responses_are_the_convolution_at_the_time_of_each_slice() -> None:
    still = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, trial_noise=0.0, lapses=0.0))
    responses = still.responses([trial.scene for trial in TRIALS])
    base = at_rest(np.eye(4))
    library = hrf_library()
    volumes = list(Acquisition(still, SILENT).run(1, TRIALS, responses, 20))
    fine = 0.01
    for node in (0, 17, 41):
        i, j, k = still.voxels[node]
        density = np.repeat(library[still.hrf_index[node]] / HRF_STEP_S, round(HRF_STEP_S / fine))
        for index in (4, 11, 19):
            moment = index * PROTOCOL.t_r_s + PROTOCOL.slice_times_s[k]
            change = 0.0
            for trial, amplitude in zip(TRIALS, responses[:, node], strict=True):
                for shown in np.arange(trial.onset_s, trial.onset_s + trial.duration_s, fine):
                    lag = int((moment - shown) / fine)
                    change += amplitude * density[lag] * fine if 0 <= lag < density.size else 0.0
            assert volumes[index][i, j, k] == pytest.approx(base[i, j, k] * (1 + change / 100), abs=1.0)


def test_thermal_noise_is_rician_with_the_ratio_asked_for() -> None:
    noise = replace(SILENT, thermal_tsnr=40.0)
    volumes = run(noise, n_volumes=60, responses=np.zeros_like(evoked()))
    brain = at_rest(np.eye(4)) > 600
    sigma = volumes[:, brain].std(axis=0).mean()
    assert volumes[:, brain].mean() / sigma == pytest.approx(40.0, rel=0.15)
    air = volumes[:, 0, 0, 0]
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.15)
    expected = np.sqrt(at_rest(np.eye(4))[brain] ** 2 + sigma**2)
    assert volumes[:, brain].mean() == pytest.approx(expected.mean(), rel=0.02)


def test_slow_noise_has_its_size_and_autocorrelation() -> None:
    brain = at_rest(np.eye(4)) > 600
    zero = np.zeros_like(evoked())
    correlated = run(replace(SILENT, autoregressive=3.0, rho_mean=0.6, rho_sd=0.0), n_volumes=200, responses=zero)[
        :, brain
    ]
    percent = 100 * (correlated / correlated.mean(axis=0) - 1)
    assert percent.std(axis=0).mean() == pytest.approx(3.0, rel=0.05)
    assert (percent[1:] * percent[:-1]).mean() / (percent**2).mean() == pytest.approx(0.6, abs=0.05)
    for name in ("physiological", "drift"):
        volumes = run(replace(SILENT, **{name: 3.0}), n_volumes=100, responses=zero)[:, brain]  # type: ignore[arg-type]
        percent = 100 * (volumes / volumes.mean(axis=0) - 1)
        assert np.sqrt((percent**2).mean()) == pytest.approx(3.0, rel=0.35)


def test_spikes_last_one_volume() -> None:
    acquisition = Acquisition(participant(), replace(SILENT, spikes=1, spike_mm=(2.0, 2.0)))
    motion = acquisition.motion(1, 50)
    away = np.flatnonzero(np.abs(motion - np.eye(4)).max(axis=(1, 2)) > 1e-9)
    assert len(away) == 1
    assert np.linalg.norm(motion[away[0]][:3, 3]) <= 2.0


def test_a_trial_may_have_a_spike_of_its_own() -> None:
    trials = [replace(trial, spike=trial.trial == "r01t003") for trial in TRIALS]
    still = replace(SILENT, spike_mm=(2.0, 2.0))
    acquisition = Acquisition(participant(), still)
    quiet = np.zeros_like(evoked())
    plain, moved = (np.stack(list(acquisition.run(1, tuple(t), quiet, 26))).astype(float) for t in (TRIALS, trials))
    differ = np.flatnonzero(np.abs(moved - plain).max(axis=(1, 2, 3)) > 20)
    assert differ.tolist() == [round((TRIALS[2].onset_s + 5) / PROTOCOL.t_r_s)]
    assert np.abs(acquisition.motion(1, 26, [4])[4] - np.eye(4)).max() > 0.01


def test_what_the_whole_brain_does_together_has_its_size_and_is_shared() -> None:
    volumes = run(replace(SILENT, common=2.0), n_volumes=200, responses=np.zeros_like(evoked()))
    brain = at_rest(np.eye(4)) > 600
    percent = 100 * (volumes[:, brain] / volumes[:, brain].mean(axis=0) - 1)
    assert np.sqrt((percent**2).mean()) == pytest.approx(2.0, rel=0.25)
    strengths = np.linalg.svd(percent, compute_uv=False) ** 2
    assert strengths[0] / strengths.sum() > 0.9
    assert percent.mean(axis=1).std() > 0.5


def test_runs_differ_and_a_run_repeats_exactly() -> None:
    first = run(NoiseParameters(), n_volumes=3)
    np.testing.assert_array_equal(first, run(NoiseParameters(), n_volumes=3))
    assert not np.array_equal(first, run(NoiseParameters(), number=2, n_volumes=3))


def test_the_head_rests_in_the_first_volume_of_the_visit() -> None:
    acquisition = Acquisition(participant())
    np.testing.assert_array_equal(acquisition.motion(1, 5)[0], np.eye(4))
    assert np.abs(acquisition.motion(2, 5)[0] - np.eye(4)).max() > 0.01
