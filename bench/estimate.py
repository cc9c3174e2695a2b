"""Registration and single-trial betas: speed and error beside python-rtspm, nilearn and plain refits, in one run.

Heads, motion and noise are the simulator's, with truth known; the peers see the same volumes and the same series.
Correctness is part of the bench: betas are compared with a batch fit before they are timed. Timings are medians (p99
for the whole path); ours may use two threads, as the peers may. Exit code 1 if a result is wrong; a target missed
is told with by how much.

    python bench/estimate.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _peers import Spm, milliseconds, repeated
from _phantom import Phantom
from _report import print_table, write_json
from nilearn.glm.first_level import make_first_level_design_matrix, run_glm
from numpy.typing import NDArray

from rtdecode.estimate import Estimator, brain_mask
from rtdecode.estimate.design import Regressors, RunTiming, scaled_drift
from rtdecode.estimate.glm import Expectation, Scales, whiten
from rtdecode.estimate.registration import Registrar, resample, warm_up
from rtdecode.estimate.run import RunSeries
from rtdecode.estimate.voxels import RHOS, group, same_everywhere
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.protocol import Protocol

Matrix = NDArray[np.float64]

THREADS = 2
GRIDS = {
    "64x64x36": (Protocol(), 80.0, 10.0),
    "104x104x72": (Protocol(shape=(104, 104, 72), voxel_mm=(2.0, 2.0, 2.0), multiband=8), 45.0, 30.0),
}
BIAS_MM = {"all brain": 0.03, "without decoding mask": 0.02}
SCALES = Scales(trial=0.5, mean=0.1, drift_per_s=0.01, motion_per_mm2=1.0, rho=0.3)
T_R_S = 2.0
TIMING = RunTiming(t_r_s=T_R_S, phase_s=1.0, high_pass_hz=0.008, hrf="glover")


# registration ---------------------------------------------------------------------------------------------


def registration(protocol: Protocol, tsnr: float, heads: int, volumes: int) -> dict[str, Any]:
    errors: dict[str, list[float]] = {"ours": [], "python-rtspm": []}
    taken: dict[str, list[float]] = {name: [] for name in ("estimate", "reslice", "spm estimate", "spm reslice")}
    for seed in range(100, 100 + heads):
        phantom = Phantom(protocol, tsnr, seed)
        reference = phantom.render(np.eye(4))
        registrar, spm = Registrar(reference, phantom.affine), Spm(reference, phantom.affine)
        points = np.argwhere(brain_mask(reference)) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
        every = np.argwhere(np.ones(protocol.shape, bool)) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
        every = every.astype(np.float32)
        for _ in range(volumes):
            true = phantom.motion(registrar.centre)
            volume = phantom.render(true)
            began = time.perf_counter()
            found = registrar.estimate(volume).matrix
            between = time.perf_counter()
            resample(volume, phantom.affine, every, found, threads=THREADS)
            taken["estimate"].append(1e3 * (between - began))
            taken["reslice"].append(1e3 * (time.perf_counter() - between))
            began = time.perf_counter()
            peers = spm.estimate(volume)
            taken["spm estimate"].append(1e3 * (time.perf_counter() - began))
            taken["spm reslice"].append(milliseconds(spm.reslice))
            for name, matrix in (("ours", found), ("python-rtspm", peers)):
                off = matrix - true
                errors[name].append(float(np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1).mean()))
    return {
        "volumes": heads * volumes,
        "error_mm": {name: {"median": float(np.median(e)), "max": max(e)} for name, e in errors.items()},
        "ms": {name: float(np.median(t)) for name, t in taken.items()},
        "best_ms": {name: min(t) for name, t in taken.items()},
    }


def activation_bias(seed: int, percent: float) -> dict[str, float]:
    """Return how far a response of the back of the head moves the estimate, mask left out or not, mm."""
    phantom = Phantom(Protocol(), 1e6, seed)
    reference = phantom.render(np.eye(4))
    brain = brain_mask(reference)
    place = np.indices(brain.shape)[1]
    limit = np.quantile(place[brain], 0.75)  # the second voxel axis runs to the back
    region = brain & (place > limit)
    excited = phantom.render(np.eye(4), 1 + percent / 100 * region)
    points = np.argwhere(brain) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
    found = {}
    for name, exclude in (("all brain", None), ("without decoding mask", region)):
        off = Registrar(reference, phantom.affine, exclude).estimate(excited).matrix - np.eye(4)
        found[name] = float(np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1).mean())
    return found


# betas ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recording:
    """A run of noise and responses: series (t, v), motion (t, 6), events."""

    series: NDArray[np.float32]
    motion: Matrix
    events: list[TrialEvent]


def recording(n_volumes: int, n_voxels: int) -> Recording:
    rng = np.random.default_rng(0)
    onsets_s = (6.0 + np.arange(63) * (n_volumes * T_R_S - 20) / 63).tolist()
    return Recording(
        series=(800 + 8 * rng.standard_normal((n_volumes, n_voxels), dtype=np.float32)),
        motion=rng.standard_normal((n_volumes, 6)).cumsum(0) * [0.02, 0.02, 0.02, 4e-4, 4e-4, 4e-4],
        events=[TrialEvent(run=1, trial=str(o), onset_s=o, duration_s=3.0) for o in onsets_s],
    )


def filled(recorded: Recording, groups: Any = None, separate: bool = False) -> RunSeries:
    run = RunSeries(TIMING, confounds="6", groups=groups, separate=separate)
    for index, row in enumerate(recorded.series):
        run.add(index, row, recorded.motion[index])
    return run


def batch(recorded: Recording, voxels: int) -> Matrix:
    """Fit the same model by lstsq on explicitly whitened and stacked rows; betas of all trials, some voxels."""
    rows = np.arange(len(recorded.series))
    trials = Regressors(TIMING).of(rows, recorded.events, 0.0)
    moved = recorded.motion * [1, 1, 1, 50, 50, 50]
    drift = scaled_drift(TIMING, rows)
    design = np.column_stack([np.ones(len(rows)), drift, moved - moved.mean(0), trials, trials.sum(1)])
    n = trials.shape[1]
    precision = [0.0] + [1 / SCALES.drift_per_s] * drift.shape[1] + [1 / SCALES.motion_per_mm2] * 6
    precision += [1 / SCALES.trial] * n + [1 / SCALES.mean]
    series = recorded.series[:, :voxels].astype(np.float64)
    white = whiten(np.hstack([design, 100 * (series / series.mean(0) - 1)]), rows, SCALES.rho)
    stacked = np.vstack([white[:, : design.shape[1]], np.diag(np.sqrt(precision))])
    data = np.vstack([white[:, design.shape[1] :], np.zeros((len(precision), voxels))])
    return np.asarray(np.linalg.lstsq(stacked, data, rcond=None)[0][-n - 1 : -1])


def wrong(run: RunSeries, recorded: Recording, expected: Expectation) -> float:
    """Return the largest difference from the batch fit, over the largest beta of the voxel."""
    places = range(len(recorded.events))
    truth = batch(recorded, 50)
    found, _ = run.betas(places, recorded.events, expected)
    return float((np.abs(found[:, :50] - truth).max(0) / np.abs(truth).max(0)).max())


def betas(n_volumes: int, n_voxels: int, times: int) -> dict[str, Any]:
    recorded = recording(n_volumes, n_voxels)
    expected = Expectation(scales=SCALES)
    last = [len(recorded.events) - 1]
    bins = replace(same_everywhere(n_voxels), rho=np.arange(n_voxels) % len(RHOS))
    twenty = group(n_voxels, replace(bins, shrinkage=np.arange(n_voxels) // len(RHOS) % 5))
    runs = {
        "ridge to the mean (LSA)": (filled(recorded), expected),
        "LSS": (filled(recorded, separate=True), Expectation(scales=None)),
        f"{len(group(n_voxels, bins).groups)} AR groups": (filled(recorded, group(n_voxels, bins)), expected),
        f"{len(twenty.groups)} AR x shrinkage groups": (filled(recorded, twenty), expected),
    }
    found: dict[str, Any] = {"wrong": wrong(next(iter(runs.values()))[0], recorded, expected), "ms": {}}
    for name, (run, of_run) in runs.items():
        found["ms"][name] = repeated(lambda run=run, of_run=of_run: run.betas(last, recorded.events, of_run), times)
    return found


def peer_betas(n_volumes: int, n_voxels: int, times: int) -> dict[str, Any]:
    """Time one trial's beta by refitting: LSS with AR(1) noise by nilearn, and plain lstsq of all trials."""
    recorded = recording(n_volumes, n_voxels)
    frames = (np.arange(n_volumes) + 0.5) * T_R_S
    names = ["other"] * (len(recorded.events) - 1) + ["this"]
    onsets_s = [event.onset_s for event in recorded.events]
    table = pd.DataFrame({"onset": onsets_s, "duration": 3.0, "trial_type": names})
    options = {"hrf_model": "glover", "drift_model": "cosine", "high_pass": 0.008, "add_regs": recorded.motion}
    separate = make_first_level_design_matrix(frames, table, **options)
    table["trial_type"] = [f"t{i}" for i in range(len(table))]
    together = make_first_level_design_matrix(frames, table, **options).to_numpy()
    double = recorded.series.astype(np.float64)
    return {
        "nilearn LSS ar1 refit": repeated(lambda: run_glm(double, separate.to_numpy(), noise_model="ar1"), times),
        "numpy lstsq refit": repeated(lambda: np.linalg.lstsq(together, double, rcond=None), times),
    }


# the whole path -------------------------------------------------------------------------------------------


def whole_path(n_volumes: int) -> dict[str, Any]:
    """Time the estimator of the daemon, volume to betas, every voxel of the head's slab in the mask."""
    protocol, tsnr, _ = GRIDS["104x104x72"]
    phantom = Phantom(protocol, tsnr, 7)
    drawn = [phantom.render(np.eye(4))]
    for _ in range(5):
        drawn.append(phantom.render(phantom.motion(np.zeros(3))))
    estimator = Estimator(EstimateSettings(censor_fd_mm=1e3, confounds="6"), "bench")
    estimator.warm_up()
    estimator.start_run(1, protocol.t_r_s)
    for i, onset_s in enumerate(np.arange(3.0, n_volumes * protocol.t_r_s - 10, 4.0).tolist()):
        estimator.add_event(TrialEvent(run=1, trial=str(i), onset_s=onset_s, duration_s=3.0))
    taken = []
    for index in range(n_volumes):
        stamp = Stamp(session="bench", run=1, volume=index, received_s=0.0, received_mono_s=0.0)
        volume = Volume(
            stamp=stamp,
            data=drawn[index % len(drawn)].astype(np.uint16),
            affine=protocol.affine,
            t_r_s=protocol.t_r_s,
            slice_times_s=None,
            series_uid="1",
            instance=index + 1,
            path="",
        )
        taken.append(milliseconds(lambda volume=volume: estimator.step(volume)))
    return {
        "voxels": int(estimator.space.mask.sum()),
        "volumes": n_volumes,
        "median_ms": float(np.median(taken[1:])),
        "p99_ms": float(np.quantile(taken[1:], 0.99)),
    }


# report ---------------------------------------------------------------------------------------------------


def judged(figures: dict[str, Any]) -> list[list[str]]:
    """Compare with the targets of the project."""
    rows: list[tuple[str, float, float, str]] = []
    for grid, (_, _, target) in GRIDS.items():
        of_grid = figures["registration"][grid]
        rows.append((f"estimate + reslice {grid}", of_grid["ms"]["estimate"] + of_grid["ms"]["reslice"], target, "ms"))
        for which in ("median", "max"):
            ours, spm = (of_grid["error_mm"][name][which] for name in ("ours", "python-rtspm"))
            rows.append((f"{which} error {grid} (target: SPM's)", ours, spm, "mm"))
    rows += [
        (f"bias of 5 % activation, {name}", figures["bias_mm"][name], limit, "mm") for name, limit in BIAS_MM.items()
    ]
    small = figures["betas"]["15k"]["ms"]
    limits = {"ridge to the mean (LSA)": 2.0, "LSS": 2.0, f"{len(RHOS)} AR groups": 8.0}
    rows += [(f"one beta, 15k voxels: {name}", small[name]["median_ms"], limit, "ms") for name, limit in limits.items()]
    for name in ("ridge to the mean (LSA)", "LSS"):
        rows.append((f"one beta, 150k voxels: {name}", figures["betas"]["150k"]["ms"][name]["median_ms"], 25.0, "ms"))
    path = figures["whole_path"]
    rows.append((f"volume to betas, {path['voxels']} voxels, p99", path["p99_ms"], 120.0, "ms"))
    rows.append(("the same, peers' sum / ours, at least", -figures["speedup"], -10.0, "x"))
    return [
        [name, f"{abs(got):.4g} {unit}", f"{abs(limit):.4g} {unit}", "yes" if got <= limit else "MISSED"]
        for name, got, limit, unit in rows
    ]


def report(figures: dict[str, Any]) -> None:
    rows = []
    for grid, found in figures["registration"].items():
        for name, steps in (("ours", ("estimate", "reslice")), ("python-rtspm", ("spm estimate", "spm reslice"))):
            error = found["error_mm"][name]
            times = [f"{found['ms'][step]:.1f}" for step in steps]
            rows.append([f"{grid} {name}", f"{error['median']:.4f}", f"{error['max']:.4f}", *times])
    print_table(
        "Rigid motion up to 3 mm / 3 degrees: mean displacement over the brain",
        ["", "median mm", "max mm", "estimate ms", "full reslice ms"],
        rows,
    )
    rows = [
        [f"{size} voxels: {name}", *(f"{ms[which]:.2f}" for which in ("best_ms", "median_ms", "p99_ms"))]
        for size, found in figures["betas"].items()
        for name, ms in found["ms"].items()
    ]
    rows += [
        [f"15k voxels: {name}", *(f"{ms[which]:.0f}" for which in ("best_ms", "median_ms", "p99_ms"))]
        for name, ms in figures["peers"].items()
    ]
    print_table("One trial's beta, 300 volumes, 63 trials", ["", "best ms", "median ms", "p99 ms"], rows)
    print_table("Targets", ["", "got", "target", "met"], judged(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small: does it run, and is it right?")
    arguments = parser.parse_args()
    heads, volumes, times = (1, 2, 3) if arguments.quick else (3, 10, 30)
    warm_up()
    figures: dict[str, Any] = {
        "load_at_start": os.getloadavg(),
        "registration": {
            grid: registration(protocol, tsnr, heads, volumes) for grid, (protocol, tsnr, _) in GRIDS.items()
        },
        "bias_mm": activation_bias(7, 5.0),
        "betas": {"15k": betas(300, 15_000, times), "150k": betas(300, 15_000 if arguments.quick else 150_000, times)},
        "peers": peer_betas(300, 2_000 if arguments.quick else 15_000, 1 if arguments.quick else 3),
        "whole_path": whole_path(20 if arguments.quick else 200),
    }
    spm = figures["registration"]["104x104x72"]["ms"]
    refit = 10 * figures["peers"]["nilearn LSS ar1 refit"]["median_ms"]  # at 150k voxels
    figures["speedup"] = (spm["spm estimate"] + spm["spm reslice"] + refit) / figures["whole_path"]["p99_ms"]
    report(figures)
    if arguments.json:
        write_json(arguments.json, figures)
    worst = max(found["wrong"] for found in figures["betas"].values())
    errors = [found["error_mm"]["ours"]["max"] for found in figures["registration"].values()]
    print(f"\nLargest difference of betas from the batch fit: {worst:.1e} (at most 1e-6)")
    if worst > 1e-6 or max(errors) > 0.1:
        print("A result is wrong: the timings mean nothing.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
