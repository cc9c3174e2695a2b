"""What a calibration hands to a later visit."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.numpy import save_file

from rtdecode.errors import BundleError
from rtdecode.estimate import Estimator
from rtdecode.estimate.calibrated import MASK, MODEL, REFERENCE, Calibrated, Learned, open_calibrated
from rtdecode.estimate.glm import Expectation, Scales
from rtdecode.estimate.registration import rigid_matrix
from rtdecode.estimate.voxels import VoxelModel
from rtdecode.packs import open_participant
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA
from rtdecode.packs.sealed import seal
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from tests.packs import write_provenance
from tests.unit.test_estimate_registration import SHAPE, Phantom

SCALES = Scales(trial=0.5, mean=0.05, drift_per_s=0.02, motion_per_mm2=0.7, rho=0.3)
T_R_S = 2.0


def learned(n_voxels: int) -> Learned:
    rng = np.random.default_rng(0)
    return Learned(
        expectation=Expectation(
            scales=SCALES, lag_s=-1.5, mean_response=rng.standard_normal(n_voxels).astype(np.float32)
        ),
        voxels=VoxelModel(hrf=np.full(n_voxels, 3), rho=np.full(n_voxels, 2), shrinkage=np.full(n_voxels, 1)),
    )


def test_a_disk_that_refuses_the_model_raises_what_disks_raise(tmp_path: Path) -> None:
    """Whoever leaves out what cannot be written looks for nothing else."""
    with pytest.raises(OSError, match="No such file"):
        learned(4).save(tmp_path / "gone" / MODEL, EstimateSettings())


def bundle(folder: Path, data: np.ndarray, affine: np.ndarray, mask: np.ndarray, settings: EstimateSettings) -> Path:
    def fill(draft: Path) -> None:
        nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), affine), draft / REFERENCE)
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), draft / MASK)
        learned(int(mask.sum())).save(draft / MODEL, settings)
        for name in ("adapter", "encoding", "evidence"):
            save_file({"x": np.zeros(1, np.float32)}, draft / f"{name}.safetensors")
        write_provenance(draft)

    seal(folder, PARTICIPANT_SCHEMA, fill)
    return folder


def test_what_was_learned_survives_the_bundle(tmp_path: Path) -> None:
    mask = np.zeros((4, 3, 2), bool)
    mask[1:3] = True
    data = np.random.default_rng(1).uniform(size=mask.shape).astype(np.float32)
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    found = open_calibrated(open_participant(bundle(tmp_path / "bundle", data, affine, mask, EstimateSettings())))
    np.testing.assert_array_equal(found.reference, data)
    np.testing.assert_array_equal(found.affine, affine)
    np.testing.assert_array_equal(found.mask, mask)
    expected, got = learned(12), found.learned
    assert got.expectation.scales is not None
    assert asdict(got.expectation.scales) == asdict(SCALES)
    assert got.expectation.lag_s == -1.5
    np.testing.assert_array_equal(got.expectation.mean_response, expected.expectation.mean_response)
    assert got.voxels is not None
    assert got.voxels.hrf.tolist() == [3] * 12


def test_only_settings_that_change_betas_must_agree(tmp_path: Path) -> None:
    mask = np.ones((2, 2, 2), bool)
    made = bundle(tmp_path / "bundle", mask, np.eye(4), mask, EstimateSettings(hrf="spm"))
    found = open_calibrated(open_participant(made))
    assert found.disagreements(EstimateSettings(hrf="spm", censor_fd_mm=0.5, revise_at_s=(4.0,))) == []
    (problem,) = found.disagreements(EstimateSettings())
    assert problem.startswith("$.estimate.hrf: expected 'spm' as in the calibration")


def test_a_bundle_without_the_model_is_refused(tmp_path: Path) -> None:
    def fill(draft: Path) -> None:
        for name in ("adapter", "encoding", "evidence"):
            save_file({"x": np.zeros(1, np.float32)}, draft / f"{name}.safetensors")
        write_provenance(draft)

    seal(tmp_path / "bundle", PARTICIPANT_SCHEMA, fill)
    with pytest.raises(BundleError, match=r"expected reference\.nii\.gz.*calibrate again"):
        open_calibrated(open_participant(tmp_path / "bundle"))


def volume(index: int, data: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(
        stamp=Stamp(session="s", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        data=np.round(data).astype(np.uint16),
        affine=affine,
        t_r_s=T_R_S,
        slice_times_s=None,
        series_uid="1",
        instance=index,
        path=str(index),
    )


def test_a_head_in_another_place_is_brought_to_the_calibrations_voxels() -> None:
    phantom = Phantom()
    still = phantom.render(np.eye(4), None)
    mask = np.zeros(SHAPE, bool)
    mask[15:25, 12:20, 12:18] = True
    calibrated = Calibrated(
        reference=still,
        affine=phantom.affine,
        mask=mask,
        learned=replace(learned(mask.sum()), voxels=None),
        settings={},
    )
    estimator = Estimator(EstimateSettings(confounds="none"), "s", calibrated=calibrated)
    centre = estimator.space.centre_mm
    assert centre is not None
    today = np.array([6.0, -4.0, 5.0, 0.08, -0.05, 0.1])
    prescribed = phantom.affine.copy()
    prescribed[:3, 3] += phantom.affine[:3, :3] @ [1.0, -2.0, 1.0]  # the slices lie elsewhere too
    moved = rigid_matrix(today, centre)
    there = np.linalg.inv(phantom.affine) @ prescribed
    estimator.start_run(1, T_R_S)
    estimator.add_event(TrialEvent(run=1, trial="a", onset_s=2.0, duration_s=2.0))
    data = np.roll(phantom.render(moved, None), np.round(-there[:3, 3]).astype(int), (0, 1, 2))
    registered, _ = estimator.step(volume(0, data, prescribed))
    np.testing.assert_allclose(registered.motion[:3], today[:3], atol=0.05)
    np.testing.assert_allclose(registered.motion[3:], today[3:], atol=2e-3)
    assert np.corrcoef(registered.masked, still[mask])[0, 1] > 0.99
    betas = [beta for index in range(1, 12) for beta in estimator.step(volume(index, data, prescribed))[1]]
    assert [beta.final for beta in betas] == [False, True]
    assert np.isfinite(betas[-1].beta).all()
    estimator.finish_run()
    assert estimator.learned is not None
    assert estimator.learned.expectation.scales is SCALES  # this run teaches nothing
