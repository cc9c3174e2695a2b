"""Another participant's responses, brought to this one's voxels by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from calibration.common_space import common_places
from calibration.session_trials import session_trials
from rtdecode.errors import CalibrationError
from rtdecode.estimate.calibrated import MASK, REFERENCE


def other_betas(own: Path, other: Path) -> NDArray[np.float32]:
    """Return betas (n, v) of another session, each voxel's from the nearest place of the other brain.

    Parameters
    ----------
    own, other : Path
        Session folders, both calibrated.

    Raises
    ------
    CalibrationError
        One has no bundle, or no trials.
    """
    places = []
    for folder in (own, other):
        bundle = folder / "bundle"
        if not bundle.is_dir():
            raise CalibrationError(f"{folder}: expected a calibration of its own (bundle), found none")
        places.append(common_places(bundle / REFERENCE, bundle / MASK))
    nearest = cKDTree(places[1]).query(places[0])[1]
    betas = [trial.beta[nearest] for trial in session_trials(other)]
    if not betas:
        raise CalibrationError(f"{other}: expected trials with betas, found none")
    return np.stack(betas).astype(np.float32)
