"""Causal betas of simulated voxels against the truth, seconds after onset.

Voxels respond with delays of the simulator's own library (not the estimator's), trials differ by low-rank tuning and
noise of their own, the series has autocorrelated noise and drift (the reference parameters of the project). Earlier
runs teach what is learned, the last ones are judged: correlation over trials with the true responses, median over
voxels. Every method sees the same series.

    python bench/simulated_betas.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from numpy.typing import NDArray

from rtdecode.estimate import Estimator
from rtdecode.estimate.design import HRF_STRETCHES, cumulative_hrf
from rtdecode.estimate.voxels import VoxelModel, same_everywhere
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.participant import HRF_STEP_S, hrf_library

T_R_S = 1.6
ISI_S, STIMULUS_S = 4.0, 3.0
DELAYS_S = (6.4, 8.0, 11.2)
LSS, DEFAULT = "LSS, canonical", "ridge to the mean (the default)"
METHODS: dict[str, dict[str, Any]] = {
    "LSA, canonical": {"shrinkage": "none"},
    LSS: {"shrinkage": "none", "single_trial": "lss"},
    DEFAULT: {},
    "with each voxel's learned response": {"voxel_hrf": True},
    "with each voxel's learned shrinkage": {"voxel_shrinkage": True},
    "with each voxel's true response": {"oracle": True},
}


class World:
    """Voxels and their responses."""

    def __init__(self, n_voxels: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.n_voxels = n_voxels
        self._library = hrf_library()
        chosen = np.rint(self._rng.normal(4, 1.3, n_voxels)).clip(0, len(self._library) - 1)
        self.hrf = chosen.astype(np.intp)
        self._mean = self._rng.normal(2.0, 1.5, n_voxels)
        self._tuning = self._rng.standard_normal((12, n_voxels)) / np.sqrt(12)
        self._common = self._rng.standard_normal((8, n_voxels)) / np.sqrt(8)
        self._gain = np.exp(self._rng.normal(np.log(1.6), 0.4, n_voxels))
        self._bright = self._rng.uniform(500, 1500, n_voxels)
        self._rho = np.clip(self._rng.normal(0.35, 0.12, n_voxels), 0, 0.7)

    def run(self, n_trials: int) -> tuple[NDArray[np.float32], list[float], NDArray[np.float64]]:
        """Return a series (t, v), onsets in seconds, and the true responses (n_trials, v)."""
        rng = self._rng
        onsets_s = (6.0 + ISI_S * np.arange(n_trials)).tolist()
        tuned = rng.standard_normal((n_trials, 12)) @ self._tuning
        noise = rng.standard_normal((n_trials, 8)) @ self._common
        truth = self._mean + self._gain * (0.8 * tuned + 0.6 * noise)
        length = int((onsets_s[-1] + 24) / T_R_S)
        moments = (np.arange(length) + 0.5) * T_R_S
        series = np.zeros((length, self.n_voxels))
        for number, hrf in enumerate(self._library):
            of_kind = self.hrf == number
            rise = np.concatenate([[0.0], np.cumsum(hrf)])
            grid = np.arange(len(rise)) * HRF_STEP_S
            since = moments[:, None] - np.array(onsets_s)
            response = np.interp(since, grid, rise) - np.interp(since - STIMULUS_S, grid, rise)
            series[:, of_kind] += response @ truth[:, of_kind]
        walk = np.cumsum(rng.standard_normal((length, self.n_voxels)), axis=0) * 0.06
        state = rng.standard_normal(self.n_voxels)
        for t in range(length):
            series[t] += 1.2 * state + walk[t]
            state = self._rho * state + np.sqrt(1 - self._rho**2) * rng.standard_normal(self.n_voxels)
        return (self._bright * (1 + series / 100)).astype(np.float32), onsets_s, truth

    def nearest(self) -> VoxelModel:
        """Return the model whose responses resemble the true ones most, of the estimator's library."""
        t = np.arange(self._library.shape[1]) * HRF_STEP_S
        ours = np.array([np.gradient(cumulative_hrf(t / s, "glover")) for s in HRF_STRETCHES])
        best = np.array([np.argmax([np.corrcoef(hrf, one)[0, 1] for one in ours]) for hrf in self._library])
        plain = same_everywhere(self.n_voxels)
        return VoxelModel(hrf=best[self.hrf], rho=plain.rho, shrinkage=plain.shrinkage)


def play(world: World, recorded: list[Any], judged: int, changes: dict[str, Any]) -> dict[float, float]:
    """Return the median correlation by delay over the last `judged` runs."""
    oracle = world.nearest() if changes.get("oracle") else None
    changes = {name: value for name, value in changes.items() if name != "oracle"}
    settings = EstimateSettings(registration="off", confounds="none", revise_at_s=DELAYS_S, final_at_s=1e6, **changes)
    estimator = Estimator(settings, "bench", voxels=oracle)
    found: dict[float, list[Any]] = {delay_s: [] for delay_s in (*DELAYS_S, np.inf)}
    truths: dict[float, list[Any]] = {delay_s: [] for delay_s in found}
    for run, (series, onsets_s, truth) in enumerate(recorded, start=1):
        estimator.start_run(run, T_R_S)
        for i, onset_s in enumerate(onsets_s):
            event = TrialEvent(run=run, trial=f"{run}/{i}", onset_s=onset_s, duration_s=STIMULUS_S)
            estimator.add_event(event)
        updates = []
        for index, values in enumerate(series):
            stamp = Stamp(session="bench", run=run, volume=index, received_s=0.0, received_mono_s=0.0)
            volume = Volume(
                stamp=stamp,
                data=np.stack([values.reshape(-1, 10), np.zeros((len(values) // 10, 10), np.float32)], axis=2),
                affine=np.eye(4),
                t_r_s=T_R_S,
                slice_times_s=None,
                series_uid="1",
                instance=index,
                path="",
            )
            updates += estimator.step(volume)[1]
        updates += estimator.finish_run()
        if run <= len(recorded) - judged:
            continue
        for update in updates:
            place = int(update.event.trial.split("/")[1])
            reached = np.inf if update.final else max(d for d in DELAYS_S if d <= update.delay_s + 1e-6)
            if update.invalid is None:
                found[reached].append(update.beta)
                truths[reached].append(truth[place])
    return {delay_s: _correlation(np.array(found[delay_s]), np.array(truths[delay_s])) for delay_s in found}


def _correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.median((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="few voxels and runs: does it run?")
    arguments = parser.parse_args()
    n_voxels, runs, judged, n_trials = (100, 3, 1, 20) if arguments.quick else (600, 6, 2, 50)
    world = World(n_voxels, seed=1)
    recorded = [world.run(n_trials) for _ in range(runs)]
    figures = {
        name: {str(delay_s): value for delay_s, value in play(world, recorded, judged, changes).items()}
        for name, changes in METHODS.items()
    }
    print_table(
        f"Correlation with the true responses, median of {n_voxels} voxels, {judged * n_trials} trials; columns: "
        "seconds after onset",
        ["method", *(f"{delay_s:g} s" for delay_s in DELAYS_S), "end of run"],
        [[name, *(f"{value:.3f}" for value in found.values())] for name, found in figures.items()],
    )
    if arguments.json:
        write_json(arguments.json, {"correlation": figures})
    behind = [delay_s for delay_s, value in figures[LSS].items() if figures[DEFAULT][delay_s] <= value]
    if behind and not arguments.quick:
        print(f"Not ahead of {LSS} at {', '.join(behind)} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
