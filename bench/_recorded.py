"""Recorded runs, and the estimator of the daemon that they are played to volume by volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rtdecode.estimate import Estimator
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings

T_R_S = 2.5
BLOCK_S = 22.5
DELAYS_S = (0.0, 2.5, 5.0, 7.5)
END = math.inf
REST_S = 10.0
"""Shortest gap between blocks that counts as rest."""

Betas = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded run: volumes (i, j, k, t), affine, blocks and motion (t, 6) in mm and radians."""

    number: int
    data: NDArray[np.int16]
    affine: NDArray[np.float64]
    onsets_s: NDArray[np.float64]
    labels: NDArray[np.str_]
    motion: NDArray[np.float64]


def load(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of some folders, in the order of their numbers."""
    runs = []
    for path in sorted(path for folder in folders for path in folder.glob("run*")):
        image = nibabel.load(path / "bold_1slice.nii.gz")
        events = pd.read_csv(path / "bold_events.tsv", sep="\t")
        rotations_first = np.loadtxt(path / "bold_moest.txt")[:, :6]
        runs.append(
            Run(
                number=int(path.name.removeprefix("run")),
                data=np.asanyarray(image.dataobj),
                affine=image.affine,
                onsets_s=events["onset"].to_numpy(float),
                labels=events["trial_type"].to_numpy(str),
                motion=np.roll(rotations_first, 3, axis=1),
            )
        )
    return sorted(runs, key=lambda run: run.number)


class Session:
    """The estimator of the daemon, fed volume by volume.

    Parameters
    ----------
    final_s : float
        When betas become final, seconds after the block's end.
    calibration_runs : int
        Runs that can be estimated again.
    changes
        Of the estimator's settings.
    """

    def __init__(self, final_s: float = 1e6, calibration_runs: int = 0, **changes: Any) -> None:
        self.estimator = Estimator(
            EstimateSettings(
                registration="off",
                revise_at_s=tuple(BLOCK_S + delay_s for delay_s in DELAYS_S if delay_s < final_s),
                final_at_s=BLOCK_S + final_s,
                **changes,
            ),
            session="bench",
            calibration_runs=calibration_runs,
        )
        self._played = 0

    def play(self, run: Run, *, rest: bool = False) -> dict[float, Betas]:
        """Return the betas of a run by delay after the block's end; `END` is the end of the run.

        Parameters
        ----------
        run : Run
        rest : bool
            Announce the stretches of rest as trials too; their betas come after those of the blocks.
        """
        estimator = self.estimator
        self._played += 1
        estimator.start_run(self._played, T_R_S, motion=run.motion)
        trials = [(onset_s, BLOCK_S) for onset_s in run.onsets_s.tolist()]
        if rest:
            trials += stretches_of_rest(run)
        for order, (onset_s, duration_s) in enumerate(trials):
            name = f"{self._played}/{order}"
            estimator.add_event(TrialEvent(run=self._played, trial=name, onset_s=onset_s, duration_s=duration_s))
        found: dict[float, dict[int, NDArray[np.float32]]] = {}
        for index in range(run.data.shape[-1]):
            _, updates = estimator.step(_volume(run, self._played, index))
            for update in updates:
                order = int(update.event.trial.split("/")[1])
                found.setdefault(round(update.delay_s - BLOCK_S, 3), {})[order] = update.beta
        for update in estimator.finish_run():
            found.setdefault(END, {})[int(update.event.trial.split("/")[1])] = update.beta
        missing = np.zeros(int(estimator.space.mask.sum()), np.float32)
        return {
            delay: np.stack([of_delay.get(order, missing) for order in range(len(trials))])
            for delay, of_delay in found.items()
        }


def stretches_of_rest(run: Run) -> list[tuple[float, float]]:
    """Return onset and duration of each gap before, between and after the blocks, seconds."""
    ends = [0.0, *(run.onsets_s + BLOCK_S).tolist()]
    begins = [*run.onsets_s.tolist(), run.data.shape[-1] * T_R_S]
    return [(end, begin - end) for end, begin in zip(ends, begins, strict=True) if begin - end >= REST_S]


def _volume(run: Run, number: int, index: int) -> Volume:
    return Volume(
        stamp=Stamp(session="bench", run=number, volume=index, received_s=0.0, received_mono_s=0.0),
        data=run.data[..., index],
        affine=run.affine,
        t_r_s=T_R_S,
        slice_times_s=None,
        series_uid=str(number),
        instance=index + 1,
        path=f"run{number:03d}/{index}",
    )
