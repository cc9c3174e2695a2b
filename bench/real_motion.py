"""Motion of the real scanner series as this project and python-rtspm (SPM's algorithm) see it, in one run.

No truth is known of the motion: the figure is by how much the two differ, averaged over the brain, beside how far the
head moved. Then the same volumes are disturbed, by a response of the back of the brain and by a change of the coils'
field and gain, neither of which is motion: the figure is how far the estimate moves from that of the volume as it
was. On simulated heads it is how far the estimate lies from the motion that the head was rendered with. Nothing is
left out of the cost, as where ``mask = "auto"``.

Exit code 1 if, in the median over the volumes, a response of 5 % moves our estimate by more than .03 mm or a
disturbance moves it more than SPM's.

    python bench/real_motion.py [--data DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _peers import Matrix, Spm
from _phantom import Phantom
from _report import print_table, write_json
from numpy.typing import NDArray

from rtdecode.estimate.inputs import scaled
from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.registration import Registrar
from rtdecode.process.recorded import read_runs
from rtdecode.records import Volume
from rtdecode.simulate.protocol import Protocol

FEWEST = 3  # volumes
DISTURBED = 4  # volumes of a series, evenly spread
HEADS = (100, 101, 102)
HEAD_VOLUMES = 3
TSNR = 80.0
RESPONSE = "response 5 %"
BIAS_MM = 0.03
ROUNDING_MM = 0.001  # differences that the arithmetic leaves
ALIKE = 0.95  # correlation with the reference that volumes of one contrast keep, well registered


def volumes(folder: Path) -> list[Volume]:
    """Return the volumes of the longest run in a folder of scanner files."""
    runs = [
        [item for item in run.items if isinstance(item, Volume)]
        for run in read_runs(folder, session="bench", first_run=1, t_r_s=None)
    ]
    return max(runs, key=len, default=[])


def displacement(points: Matrix, one: Matrix, other: Matrix) -> float:
    """Return by how much two rigid motions of points (n, 3) differ, mm."""
    off = one - other
    return float(np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1).mean())


def compare(series: list[Volume]) -> dict[str, Any]:
    """Register every volume to the first one, both ways."""
    reference = scaled(series[0], None)
    affine = series[0].affine
    points = brain_points(brain_mask(reference), affine)
    ours, spm = Registrar(reference, affine), Spm(reference, affine)
    apart, moved, fits = [], [], []
    for volume in series[1:]:
        data = scaled(volume, reference.shape)
        fit = ours.estimate(data, volume.affine)
        apart.append(displacement(points, fit.matrix, spm.estimate(data)))
        moved.append(displacement(points, fit.matrix, np.eye(4)))
        fits.append(fit.correlation if fit.converged else 0.0)
    return {
        "volumes": len(series),
        "shape": list(reference.shape),
        "apart_mm": {"median": float(np.median(apart)), "max": max(apart)},
        "moved_mm": {"median": float(np.median(moved)), "max": max(moved)},
        "lowest_fit": min(fits),
    }


def brain_points(brain: NDArray[np.bool_], affine: Matrix) -> Matrix:
    """Return the voxels of the brain, RAS mm, shape (n, 3)."""
    return np.asarray(np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3])


def disturbances(brain: NDArray[np.bool_], affine: Matrix) -> dict[str, NDArray[np.float32]]:
    """Return factors of the signal, shape (i, j, k), that are no motion."""
    place = np.indices(brain.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    place = place.reshape(*brain.shape, 3)
    back = brain & (place[..., 1] < np.quantile(place[brain][:, 1], 0.25))
    low, high = place[brain].min(0), place[brain].max(0)
    ramps = np.moveaxis(0.08 * ((place - low) / np.maximum(high - low, 1.0) - 0.5), -1, 0)
    factors = {"response 2 %": 1 + 0.02 * back, RESPONSE: 1 + 0.05 * back}
    for name, ramp in zip(("left to right", "back to front", "bottom to top"), ramps, strict=True):
        factors[f"coils 8 %, {name}"] = 1 + ramp
    factors["gain -6 %"] = np.full(brain.shape, 0.94)
    factors["coils 8 %, back to front, gain -6 %"] = 0.94 * (1 + ramps[1])
    return {name: np.asarray(factor, np.float32) for name, factor in factors.items()}


def summed_up(moved: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Return median and maximum of each disturbance and algorithm, mm."""
    return {
        name: {who: {"median": float(np.median(mm)), "max": max(mm)} for who, mm in of_name.items()}
        for name, of_name in moved.items()
    }


def real_biases(series: list[Volume]) -> dict[str, Any]:
    """Disturb some volumes of a series; displacement from the estimates without, mm."""
    reference, affine = scaled(series[0], None), series[0].affine
    brain = brain_mask(reference)
    points, factors = brain_points(brain, affine), disturbances(brain, affine)
    ours, spm = Registrar(reference, affine), Spm(reference, affine)
    spm.estimate(reference)
    moved: dict[str, dict[str, list[float]]] = {name: {"ours": [], "python-rtspm": []} for name in factors}
    for place in np.unique(np.linspace(1, len(series) - 1, DISTURBED).astype(int)).tolist():
        data = scaled(series[place], reference.shape)
        still, spm_still = ours.estimate(data, series[place].affine).matrix, spm.estimate(data)
        for name, factor in factors.items():
            found = ours.estimate(factor * data, series[place].affine)
            if not found.converged:
                raise RuntimeError(f"{name}: expected the registration to converge, got none at volume {place}")
            moved[name]["ours"].append(displacement(points, found.matrix, still))
            moved[name]["python-rtspm"].append(displacement(points, spm.estimate(factor * data), spm_still))
    return summed_up(moved)


def simulated_biases() -> dict[str, Any]:
    """Disturb volumes of simulated heads that moved; displacement from the true motion, mm."""
    moved: dict[str, dict[str, list[float]]] = {}
    for seed in HEADS:
        phantom = Phantom(Protocol(), TSNR, seed)
        reference = phantom.render(np.eye(4))
        brain = brain_mask(reference)
        points = brain_points(brain, phantom.affine)
        factors = {"none": np.ones(brain.shape, np.float32), **disturbances(brain, phantom.affine)}
        ours, spm = Registrar(reference, phantom.affine), Spm(reference, phantom.affine)
        spm.estimate(reference)
        for _ in range(HEAD_VOLUMES):
            true = phantom.motion(ours.centre)
            for name, factor in factors.items():
                volume = phantom.render(true, factor)
                of_name = moved.setdefault(name, {"ours": [], "python-rtspm": []})
                of_name["ours"].append(displacement(points, ours.estimate(volume).matrix, true))
                of_name["python-rtspm"].append(displacement(points, spm.estimate(volume), true))
    return summed_up(moved)


def missed(biases: dict[str, Any]) -> list[str]:
    """Say which of our biases are larger than they may be."""
    found = []
    for where, of_series in biases.items():
        for name, of_name in of_series.items():
            ours, spm = (of_name[who]["median"] for who in ("ours", "python-rtspm"))
            if name == RESPONSE and ours > BIAS_MM:
                found.append(f"{where}: {name}: expected at most {BIAS_MM} mm, got {ours:.4f}")
            if ours > spm + ROUNDING_MM:
                found.append(f"{where}: {name}: expected at most SPM's {spm:.4f} mm, got {ours:.4f}")
    return found


def print_biases(biases: dict[str, Any]) -> None:
    """Print each series' biases."""
    rows = [
        [f"{where}: {name}", *(f"{of_name[who][which]:.4f}" for who in of_name for which in ("median", "max"))]
        for where, of_series in biases.items()
        for name, of_name in of_series.items()
    ]
    print_table(
        "Moved by what is no motion, mean over the brain, mm",
        ["", "ours, median", "max", "python-rtspm, median", "max"],
        rows,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder with MANIFEST.json")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.data / "MANIFEST.json").read_text())
    figures: dict[str, Any] = {}
    biases: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for entry in manifest["series"]:
        name = entry["id"]
        if entry["layout"].startswith(("nifti", "parrec")):
            continue
        series = volumes(arguments.data / name)
        if len(series) < FEWEST:
            left_out[name] = f"{len(series)} volumes"
            continue
        found = compare(series)
        if found["lowest_fit"] > ALIKE:
            figures[name] = found
            biases[name] = real_biases(series)
        else:
            left_out[name] = (
                f"fit falls to {found['lowest_fit']:.2f}: volumes of other contrasts, or a head turned too far"
            )
    rows = [
        [
            name,
            found["volumes"],
            "x".join(map(str, found["shape"])),
            *(f"{found[kind][which]:.4f}" for kind in ("apart_mm", "moved_mm") for which in ("median", "max")),
        ]
        for name, found in figures.items()
    ]
    print_table(
        "Motion of real series: ours against python-rtspm, mean over the brain",
        ["", "volumes", "grid", "apart, median mm", "max", "moved, median mm", "max"],
        rows,
    )
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    biases["simulated heads, from the truth"] = simulated_biases()
    print_biases(biases)
    if arguments.json:
        write_json(arguments.json, {"series": figures, "left_out": left_out, "biases_mm": biases})
    problems = missed(biases)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0 if figures and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
