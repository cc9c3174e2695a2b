"""How good the data are, volume by volume."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.design import HEAD_RADIUS_MM
from rtdecode.statistics import RunningMoments

TSNR_MIN_VOLUMES = 8
_SPIKE = 3.5
_NORMAL_PER_MAD = 1.4826


def framewise_displacement(change: NDArray[np.float64]) -> float:
    """Sum of the absolute changes of the six motion parameters, rotations on a sphere of 50 mm.

    Parameters
    ----------
    change : array of shape (6,)
        From the volume before: translations in mm, rotations in radians.

    Returns
    -------
    float
        Millimetres.

    References
    ----------
    J. D. Power et al., "Spurious but systematic correlations in functional connectivity MRI networks arise
    from subject motion", NeuroImage 59(3), 2012.
    """
    size = np.abs(change)
    return float(size[:3].sum() + HEAD_RADIUS_MM * size[3:].sum())


class Censoring:
    """Decides volume by volume whether the head moved too far for a volume to be used.

    One that is back from a jerk, near where the head lay in the last volume in use, is.

    Parameters
    ----------
    limit_mm : float
        Framewise displacement that is allowed.
    """

    def __init__(self, limit_mm: float) -> None:
        self._limit_mm = limit_mm
        self._used: NDArray[np.float64] | None = None

    def leaves_out(self, fd_mm: float, motion: NDArray[np.float64]) -> bool:
        """Judge a volume by its framewise displacement, and by its motion parameters (6,)."""
        moved = fd_mm > self._limit_mm
        if moved and self._used is not None:
            moved = framewise_displacement(motion - self._used) > self._limit_mm
        if not moved:
            self._used = motion
        return moved


def is_spike(dvars: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which volumes change far more than most: more than 3.5 robust standard deviations above the median.

    Parameters
    ----------
    dvars : array of shape (t,)
        The first one, which has no volume before it, never is.

    Returns
    -------
    array of shape (t,), bool

    References
    ----------
    B. Iglewicz & D. Hoaglin, "How to detect and handle outliers", ASQC, 1993.
    """
    found = np.zeros(len(dvars), np.bool_)
    if len(dvars) < 3:
        return found
    rest = dvars[1:]
    centre = np.median(rest)
    deviation = _NORMAL_PER_MAD * np.median(np.abs(rest - centre))
    found[1:] = rest > centre + _SPIKE * deviation
    return found


class RunQuality:
    """DVARS and temporal signal-to-noise ratio of a growing run."""

    def __init__(self) -> None:
        self._moments = RunningMoments()
        self._last = np.zeros(0)

    def add(self, masked: NDArray[np.float32]) -> tuple[float, float]:
        """Take one volume.

        Parameters
        ----------
        masked : array of shape (v,), float32

        Returns
        -------
        dvars : float
            Root mean square change from the volume before, percent of the mean over voxels and time; 0 at
            first.
        tsnr : float
            Median over voxels of mean / standard deviation; nan before eight volumes.
        """
        values = masked.astype(np.float64)
        self._moments.add(values)
        level = float(self._moments.mean.mean())
        dvars = 0.0
        if self._moments.count > 1 and level > 0:
            dvars = 100.0 * math.sqrt(float(np.mean((values - self._last) ** 2))) / level
        self._last = values
        return dvars, self._tsnr()

    def _tsnr(self) -> float:
        if self._moments.count < TSNR_MIN_VOLUMES:
            return math.nan
        deviation = self._moments.deviation
        varying = deviation > 0
        if not varying.any():
            return math.nan
        return float(np.median(self._moments.mean[varying] / deviation[varying]))
