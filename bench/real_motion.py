"""Motion of the real scanner series as this project and python-rtspm (SPM's algorithm) see it, in one run.

No truth is known: the figure is by how much the two differ, averaged over the brain, beside how far the head moved.

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
from _report import print_table, write_json

from rtdecode.estimate.inputs import scaled
from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.registration import Registrar
from rtdecode.process.recorded import read_runs
from rtdecode.records import Volume

FEWEST = 3  # volumes
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
    points = np.argwhere(brain_mask(reference)) @ affine[:3, :3].T + affine[:3, 3]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder with MANIFEST.json")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.data / "MANIFEST.json").read_text())
    figures: dict[str, Any] = {}
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
    if arguments.json:
        write_json(arguments.json, {"series": figures, "left_out": left_out})
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main())
