"""The whole path of a volume with registration: from a moving phantom to betas in the space of the first volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtdecode.estimate import Estimator
from rtdecode.estimate.registration import rigid_matrix
from rtdecode.records import RegisteredVolume, Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from tests.unit.test_estimate_registration import SHAPE, Phantom

T_R_S = 2.0


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom()


def volume(index: int, data: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(
        stamp=Stamp(session="s", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        data=np.round(data).astype(np.uint16),
        affine=affine,
        t_r_s=T_R_S,
        slice_times_s=np.linspace(0, 1.9, SHAPE[2]),
        series_uid="1",
        instance=index,
        path=str(index),
    )


def test_a_response_is_found_in_a_moving_head(phantom: Phantom, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    region = np.zeros(SHAPE, np.uint8)
    region[15:25, 12:20, 12:18] = 1
    nibabel.save(nibabel.Nifti1Image(region, phantom.affine), tmp_path / "region.nii")
    settings = EstimateSettings(
        mask=tmp_path / "region.nii", shrinkage="none", confounds="none", revise_at_s=(), final_at_s=14.0
    )
    estimator = Estimator(settings, "s")
    estimator.warm_up()
    estimator.start_run(1, None)
    estimator.add_event(TrialEvent(run=1, trial="a", onset_s=16.0, duration_s=8.0))
    centre = phantom.affine[:3, :3] @ (np.array(SHAPE) / 2) + phantom.affine[:3, 3]
    registered: list[RegisteredVolume] = []
    updates = []
    walk = 0.1 * rng.standard_normal((16, 6)).cumsum(0) * [1, 1, 1, 0.02, 0.02, 0.02]
    walk -= walk[0]
    for index, motion in enumerate(walk):
        true = rigid_matrix(motion, centre)
        data = phantom.render(true, None)
        if 20 <= index * T_R_S < 30:
            data = data * 1.02  # everywhere: the gain of the cost takes it, the resampled values keep it
        one, due = estimator.step(volume(index, data, phantom.affine))
        registered.append(one)
        updates += due
    found = np.array([one.motion for one in registered])
    np.testing.assert_allclose(found[:, 3:], walk[:, 3:], atol=3e-4)
    assert found[0].tolist() == pytest.approx([0] * 6, abs=1e-4)
    assert all(one.fit > 0.99 for one in registered)
    steady = np.array([one.masked for one in registered[:10]])
    assert np.abs(steady / steady[0] - 1).mean() < 0.01
    (update,) = updates
    assert update.final
    assert update.beta.shape == (region.sum(),)
    assert 1.0 < np.median(update.beta) < 4.0


def test_another_position_of_the_field_of_view_is_followed(phantom: Phantom) -> None:
    """A volume whose affine says that the field of view was moved shows the head elsewhere in the grid."""
    estimator = Estimator(EstimateSettings(), "s")
    estimator.start_run(1, None)
    still = phantom.render(np.eye(4), None)
    first, _ = estimator.step(volume(0, still, phantom.affine))
    shifted = np.zeros_like(still)
    shifted[2:] = still[:-2]
    affine = phantom.affine.copy()
    affine[:3, 3] -= 2 * affine[:3, 0]
    second, _ = estimator.step(volume(1, shifted, affine))
    np.testing.assert_allclose(second.matrix, np.eye(4), atol=2e-3)
    np.testing.assert_allclose(second.masked, first.masked, atol=2.0)
    assert second.fd_mm < 0.01
