"""Calibration betas of one kind: estimated again, once all calibration runs have taught what they can.

Betas of the first run come from first guesses of scales and response lag, later ones from what was learned by then. A
decoder that is fitted on such a mixture takes the difference of kind for noise. What is decoded is never changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

_REST_S = 8.0
"""Shortest pause between trials that holds rest: the response to the last one has mostly gone."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationBetas:
    """Betas of the calibration runs.

    Attributes
    ----------
    trials : dict of str to array of shape (v,), float32
        Final beta of each trial.
    rest : array of shape (m, v), float32
        What stretches of rest give that are taken for trials; none where trials follow each other fast.
    rest_run : array of shape (m,), int64
        Their runs.
    """

    trials: dict[str, NDArray[np.float32]]
    rest: NDArray[np.float32]
    rest_run: NDArray[np.int64]


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

    def leave_out(self, run: int) -> None:
        """Forget a run that was kept."""
        self._runs.pop(run, None)

    def begin_again(self, runs: int) -> None:
        """Forget all that was kept; keep runs up to this one from now on."""
        self._runs.clear()
        self._wanted = runs

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
        self,
        mask: NDArray[np.bool_],
        expected: Callable[[int], Expectation],
        voxels: VoxelModel | None,
    ) -> CalibrationBetas:
        """Estimate every final beta again, from the volumes that it was made of at first; stretches of rest as well.

        Parameters
        ----------
        mask : array of shape (i, j, k), bool
        expected : callable
            What is expected of a run, by its number.
        voxels : VoxelModel or None
        """
        trials: dict[str, NDArray[np.float32]] = {}
        rest: list[tuple[int, NDArray[np.float32]]] = []
        for run, kept in self._runs.items():
            masked = kept.masked if isinstance(kept.masked, np.ndarray) else np.load(kept.masked, mmap_mode="r")
            expectation = expected(run)
            series = new_series(self._settings, mask, kept.t_r_s, kept.slice_times_s, voxels)
            resting = _stretches_of_rest(run, kept)
            following = [*kept.indices[1:].tolist(), sys.maxsize]
            for row, (index, after) in enumerate(zip(kept.indices.tolist(), following, strict=True)):
                series.add(index, np.asarray(masked[row]), *kept.motion[row])
                for event, seen in (*kept.finals, *resting):
                    if not index <= seen < after:
                        continue
                    known = [other for other, _ in kept.finals if other.onset_s < (seen + 1) * kept.t_r_s]
                    if event not in known:
                        known.append(event)
                    betas, (reason,) = series.betas([known.index(event)], known, expectation)
                    if reason is None and (event, seen) in resting:
                        rest.append((run, betas[0]))
                    elif reason is None:
                        trials[event.trial] = betas[0]
        return CalibrationBetas(
            trials=trials,
            rest=np.stack([beta for _, beta in rest]) if rest else np.zeros((0, int(mask.sum())), np.float32),
            rest_run=np.array([run for run, _ in rest], np.int64),
        )


def _stretches_of_rest(run: int, kept: _KeptRun) -> list[tuple[TrialEvent, int]]:
    """Return rest between trials as trials of their length, with the last volume that each may see."""
    ordered = sorted((event for event, _ in kept.finals), key=lambda event: event.onset_s)
    duration_s = float(np.median([event.duration_s for event in ordered]))
    delay = int(np.median([seen - event.onset_s / kept.t_r_s for event, seen in kept.finals]))
    found = []
    ends_s = [0.0, *(event.onset_s + event.duration_s for event in ordered)]
    for end_s, event in zip(ends_s, ordered, strict=False):
        gap_s = event.onset_s - end_s
        if gap_s < max(_REST_S, duration_s / 2):
            continue
        length_s = min(gap_s, duration_s)
        onset_s = event.onset_s - length_s
        pause = TrialEvent(run=run, trial=f"rest {run}/{onset_s:g}", onset_s=onset_s, duration_s=length_s)
        last = int(onset_s / kept.t_r_s) + delay
        if last <= kept.indices[-1]:
            found.append((pause, last))
    return found


def save_betas(path: Path, betas: CalibrationBetas) -> None:
    """Write them; the file is there whole or not at all."""
    tensors: dict[str, NDArray[Any]] = {"rest": betas.rest, "rest_run": betas.rest_run}
    if betas.trials:
        tensors["beta"] = np.stack(list(betas.trials.values()))
    draft = path.with_suffix(".draft")
    draft.write_bytes(save(tensors, metadata={"trials": json.dumps(list(betas.trials))}))
    draft.replace(path)


def open_betas(path: Path) -> CalibrationBetas:
    """Read what `save_betas` wrote.

    Raises
    ------
    BundleError
        It is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            names = json.loads((stored.metadata() or {})["trials"])
            values = stored.get_tensor("beta") if names else ()
            return CalibrationBetas(
                trials=dict(zip(names, values, strict=True)),
                rest=stored.get_tensor("rest"),
                rest_run=stored.get_tensor("rest_run"),
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected the betas of the calibration runs: {error}") from None
