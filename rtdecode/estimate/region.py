"""Percent signal change of regions and parcels, volume by volume, for neurofeedback."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import SettingsError
from rtdecode.estimate import design, glm
from rtdecode.estimate.glm import Scales
from rtdecode.estimate.labels import Parcels

FloatArray = NDArray[np.float64]


class RegionSignal:
    """How far each volume's mean over a region lies from what level, drift and motion so far predict.

    The model is that of the betas, with an impulse at the newest volume for a trial: its coefficient is the
    difference from the prediction of all volumes before. Noise is taken as white, or a lasting response would be
    predicted from its own beginning.

    Parameters
    ----------
    timing : design.RunTiming
    confounds : {"6", "24", "none"}
        Motion regressors.
    scales : Scales
        Those of drift and motion are used.
    """

    def __init__(self, timing: design.RunTiming, confounds: design.Confounds, scales: Scales) -> None:
        self._timing = timing
        self._confounds = confounds
        self._scales = scales
        self._rows: list[int] = []
        self._motion: list[FloatArray] = []
        self._changes: list[FloatArray] = []
        self._values: list[FloatArray] = []

    def retime(self, timing: design.RunTiming) -> None:
        """Take the volumes so far as acquired at other times, which were not known before."""
        self._timing = timing

    def add(self, index: int, values: FloatArray, motion: FloatArray, change: FloatArray) -> FloatArray:
        """Take a volume.

        Parameters
        ----------
        index : int
        values : array of shape (r,), float64
            Mean over each region.
        motion, change : array of shape (6,), float64
            Motion parameters, and their difference from the volume before.

        Returns
        -------
        array of shape (r,), float64
            Percent of the mean so far; nan where the volumes before do not predict it.
        """
        self._rows.append(index)
        self._values.append(values)
        self._motion.append(motion)
        self._changes.append(change)
        rows = np.array(self._rows, np.int64)
        series = np.array(self._values)
        level = series.mean(0)
        impulse = np.zeros((len(rows), 1))
        impulse[-1] = 1.0
        moved = design.motion_regressors(self._motion, self._changes, self._confounds)
        model, column = glm.separate_trial_design(
            rows, design.scaled_drift(self._timing, rows), moved, impulse, self._scales, 0
        )
        try:
            functional = glm.weights(model, [column])[0]
        except np.linalg.LinAlgError:
            return np.full(len(values), np.nan)
        percent = 100.0 * (series - level) / np.where(level > 0, level, np.nan)
        return np.asarray(functional @ percent)


class Signals(NamedTuple):
    """Percent signal change at one volume: of each region, and of each parcel of each label image."""

    regions: dict[str, float]
    parcels: dict[str, dict[str, float]]


NO_SIGNALS = Signals({}, {})


class Regions:
    """The named regions of a run, as masks of the reference, and the parcels of label images.

    Parameters
    ----------
    masks : mapping of str to array of shape (i, j, k), bool
    mask : array of shape (i, j, k), bool
        Voxels that have values.
    signal : RegionSignal
        Of the run.
    parcels : mapping of str to Parcels

    Raises
    ------
    SettingsError
        If no voxel of a region has values.
    """

    def __init__(
        self,
        masks: Mapping[str, NDArray[np.bool_]],
        mask: NDArray[np.bool_],
        signal: RegionSignal,
        parcels: Mapping[str, Parcels] | None = None,
    ) -> None:
        self._members: dict[str, NDArray[np.intp]] = {}
        self._parcels = dict(parcels or {})
        self._signal = signal
        for name, region in masks.items():
            self._members[name] = np.flatnonzero(region[mask])
            if not len(self._members[name]):
                raise SettingsError([f"$.estimate.regions.{name}: expected voxels inside the mask, got none"])

    def retime(self, timing: design.RunTiming) -> None:
        """Do as `RegionSignal.retime` does."""
        self._signal.retime(timing)

    def add(self, index: int, masked: NDArray[np.float32], motion: FloatArray, change: FloatArray) -> Signals:
        """Take a volume's values, shape (v,)."""
        means = [masked[members].mean(dtype=np.float64) for members in self._members.values()]
        for parcels in self._parcels.values():
            means += parcels.means(masked).tolist()
        return self._named(self._signal.add(index, np.array(means), motion, change).tolist())

    def unknown(self) -> Signals:
        """Return nan for all: the volume is not used."""
        return self._named(itertools.repeat(math.nan))

    def _named(self, percent: Iterable[float]) -> Signals:
        values = iter(percent)
        regions = {name: next(values) for name in self._members}
        return Signals(regions, {n: {one: next(values) for one in p.names} for n, p in self._parcels.items()})
