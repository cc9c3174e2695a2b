"""Calibration betas of one kind: estimated again, once all calibration runs have taught what they can.

Betas of the first run come from first guesses of scales and response lag, later ones from what was learned by then. A
decoder that is fitted on such a mixture takes the difference of kind for noise. What is decoded is never changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rtdecode.errors import BundleError
from rtdecode.estimate.glm import Expectation
from rtdecode.estimate.run import RunSeries, new_series
from rtdecode.estimate.voxels import VoxelModel
from rtdecode.records import TrialEvent
from rtdecode.settings import EstimateSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _KeptRun:
    """A finished run, as its volumes came.

    Attributes
    ----------
    t_r_s : float
    slice_times_s : array of shape (k,) or None
    indices : array of shape (t,), int64
        Of the volumes in use.
    motion : array of shape (t, 2, 6)
        Parameters, and their changes.
    finals : tuple of (TrialEvent, int)
        Each trial and the index of the last volume that its final beta saw.
    masked : Path or array of shape (t, v), float32
    """

    t_r_s: float
    slice_times_s: NDArray[np.float64] | None
    indices: NDArray[np.int64]
    motion: NDArray[np.float64]
    finals: tuple[tuple[TrialEvent, int], ...]
    masked: Path | NDArray[np.float32]


class Reestimator:
    """Keeps the calibration runs, and estimates their betas anew.

    Parameters
    ----------
    settings : EstimateSettings
    runs : int
        Runs from 1 to this one are kept.
    scratch : Path or None
        Folder for their series; None keeps them in memory.
    """

    def __init__(self, settings: EstimateSettings, runs: int, scratch: Path | None) -> None:
        self._settings = settings
        self._wanted = runs
        self._scratch = scratch
        self._runs: dict[int, _KeptRun] = {}

    def keep(
        self,
        run: int,
        series: RunSeries,
        t_r_s: float,
        slice_times_s: NDArray[np.float64] | None,
        finals: Sequence[tuple[TrialEvent, int]],
    ) -> None:
        """Keep a run that is over, if it is a calibration run with trials."""
        if run > self._wanted or not finals:
            return
        indices, masked, motion = series.recorded()
        kept: Path | NDArray[np.float32] = masked
        if self._scratch is not None:
            kept = self._scratch / f"calibration-run-{run:02d}.npy"
            np.save(kept, masked)
        self._runs[run] = _KeptRun(
            t_r_s=t_r_s,
            slice_times_s=slice_times_s,
            indices=indices,
            motion=motion,
            finals=tuple(finals),
            masked=kept,
        )

    def betas(
        self, mask: NDArray[np.bool_], expectation: Expectation, voxels: VoxelModel | None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the final betas (v,) of all trials kept, by name, each from the volumes that it was made of at first.

        Parameters
        ----------
        mask : array of shape (i, j, k), bool
        expectation : Expectation
            What is expected of every run.
        voxels : VoxelModel or None
        """
        found: dict[str, NDArray[np.float32]] = {}
        for kept in self._runs.values():
            masked = kept.masked if isinstance(kept.masked, np.ndarray) else np.load(kept.masked, mmap_mode="r")
            series = new_series(self._settings, mask, kept.t_r_s, kept.slice_times_s, voxels)
            following = [*kept.indices[1:].tolist(), sys.maxsize]
            for row, (index, after) in enumerate(zip(kept.indices.tolist(), following, strict=True)):
                series.add(index, np.asarray(masked[row]), *kept.motion[row])
                for event, seen in kept.finals:
                    if index <= seen < after:
                        known = [other for other, _ in kept.finals if other.onset_s < (seen + 1) * kept.t_r_s]
                        betas, (reason,) = series.betas([known.index(event)], known, expectation)
                        if reason is None:
                            found[event.trial] = betas[0]
        return found


def save_betas(path: Path, betas: Mapping[str, NDArray[np.float32]]) -> None:
    """Write betas by trial; the file is there whole or not at all."""
    tensors = {"beta": np.stack(list(betas.values()))} if betas else {}
    draft = path.with_suffix(".draft")
    draft.write_bytes(save(tensors, metadata={"trials": json.dumps(list(betas))}))
    draft.replace(path)


def open_betas(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read what `save_betas` wrote.

    Raises
    ------
    BundleError
        It is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            trials = json.loads((stored.metadata() or {})["trials"])
            return dict(zip(trials, stored.get_tensor("beta") if trials else (), strict=True))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected the betas of the calibration runs: {error}") from None
