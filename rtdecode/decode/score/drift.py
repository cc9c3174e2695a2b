"""Whether the betas of a session still are what the decoder was calibrated on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.adapter import Adapter
from rtdecode.records import Drift
from rtdecode.statistics import RunningMoments


class DriftMonitor:
    """Follows mean and deviation of each voxel's beta, in units of the calibration's.

    Parameters
    ----------
    adapter : Adapter
        Its voxels, means and scales are the calibration's.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._moments = RunningMoments()

    @property
    def drift(self) -> Drift | None:
        """Of the betas so far; None before the second."""
        moments = self._moments
        if moments.count < 2:
            return None
        return Drift(
            trials=moments.count,
            shift=float(np.median(np.abs(moments.mean))),
            spread=float(np.median(moments.deviation)),
        )

    def add(self, beta: NDArray[np.float32]) -> None:
        """Take the final beta of a trial, shape (v,); a voxel without an estimate counts as its mean."""
        z = (beta[self._adapter.voxels].astype(np.float64) - self._adapter.mean) / self._adapter.scale
        z[~np.isfinite(z)] = 0.0
        self._moments.add(z)
