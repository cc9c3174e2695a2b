"""A visit of blocks in which the simulated participant regulates, and the parts that tell it how well it does."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.regulation import Regulator
from rtdecode.simulate.visit import Stratum, VisitPlan

T_R_S = 1.5
FIRST, BLOCK, EVERY = 8, 8, 14
"""Volumes before the first block, of a block, and from the beginning of one to that of the next."""


def plan_of(seed: int, runs: int, blocks: int) -> VisitPlan:
    """Blocks of 12 s of trying, 9 s of rest after each."""
    return VisitPlan(
        seed=seed,
        calibration_runs=0,
        decoding_runs=runs,
        strata=(Stratum(kind="regulate"),) * runs,
        trials_per_run=blocks,
        volumes_per_run=FIRST + blocks * EVERY,
        t_r_s=T_R_S,
        trial_s=BLOCK * T_R_S,
        pause_s=(EVERY - BLOCK) * T_R_S,
        lead_in_s=FIRST * T_R_S,
    )


def regulating(seed: int, protocol: Protocol, n_responsive: int, region: Path) -> tuple[Participant, Regulator]:
    """Return a participant whose visual voxels respond to what they try; write these as a region."""
    made = make_participant(seed, protocol, ResponseParameters(n_responsive=n_responsive, trial_noise=1.0))
    mask = np.zeros(protocol.shape, np.uint8)
    mask[tuple(made.voxels.T)] = 1
    nib.save(nib.Nifti1Image(mask, protocol.affine), region)
    return made, Regulator(seed, made.mean)
