"""What is imagined and what is seen, by the tiny pack and by the tiny imagery pack, on the same simulated betas.

Each participant is calibrated on seen pictures once for each pack, then imagines six targets twelve times each and sees
them as often. Betas are the simulator's own with measurement noise added, without scanner or GLM. Figures are shares of
epochs whose target is named among six; differences are paired by participant.

    python bench/imagery.py [--seed N] [--participants N] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from numpy.typing import NDArray

from calibration.calibrator import Calibrator
from rtdecode.decode.loading import load_candidates
from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.imagery.read_out import CalibrationScale, ImageryEpoch, ImageryReadOut, read_all
from rtdecode.packs import open_pack
from rtdecode.simulate.imagery_visit import CUE, ImageryPlan
from rtdecode.simulate.participant import make_participant
from rtdecode.simulate.visit import NULL

PACKS = ("tiny", "tiny-imagery")
MEASUREMENT = 6.0
"""Standard deviation of what estimation adds to a beta, percent signal change: about that of the demo."""
_VISION_RUN = 99


def participant(seed: int) -> tuple[ImageryPlan, NDArray[np.float32], NDArray[np.float32]]:
    """Plan, betas of all its trials, and betas of its imagery epochs as if the targets were seen."""
    plan = ImageryPlan(seed=seed, null_runs=1)
    person, trials = make_participant(seed), plan.trials
    evoked = person.responses([t.scene for t in trials], [t.kind for t in trials])
    betas = np.empty_like(evoked)
    for run in range(1, plan.runs + 1):
        rows = [i for i, trial in enumerate(trials) if trial.run == run]
        betas[rows] = person.trials(evoked[rows], run, [trials[i].kind for i in rows])
    seen = person.trials(person.responses([t.scene for t in trials if t.kind == "imagery"]), _VISION_RUN)
    rng = np.random.default_rng(seed)
    noisy = [(one + MEASUREMENT * rng.standard_normal(one.shape)).astype(np.float32) for one in (betas, seen)]
    return plan, noisy[0], noisy[1]


def shares(pack: str, plan: ImageryPlan, betas: NDArray[np.float32], seen: NDArray[np.float32]) -> dict[str, float]:
    """Calibrate, and name targets of imagined and seen epochs."""
    with tempfile.TemporaryDirectory() as folder:
        plan.write_stimuli(Path(folder))
        candidates = load_candidates(open_pack(pack), Path(folder))
    calibrator = Calibrator(candidates, seed=plan.seed)
    for trial, beta in zip(plan.trials, betas, strict=True):
        if trial.run > plan.calibration_runs:
            break
        if trial.condition == NULL:
            calibrator.add_null(beta, trial=trial.trial, run=trial.run)
        else:
            calibrator.add(beta, trial=trial.trial, stimulus=trial.stimulus, run=trial.run)
    encoding = calibrator.fit().encoding
    scale = CalibrationScale(voxels=encoding.voxels, centre=encoding.centre, scale=encoding.scale)
    protocol = ImageryProtocol(targets={name: name for name in plan.targets})

    def likelihood(beta: NDArray[np.float32], names: Any) -> NDArray[np.float64]:
        rows = np.array([candidates.index(name) for name in names])
        return encoding.pictures_of(encoding.read(beta), encoding.describe(candidates.tokens[rows]))

    epochs = [i for i, trial in enumerate(plan.trials) if trial.run > plan.calibration_runs and trial.condition != CUE]
    found = {}
    for task, rows in (("imagery", betas[epochs]), ("vision", seen)):
        readout = ImageryReadOut(protocol, likelihood, scale)
        given = [
            ImageryEpoch(trial=plan.trials[i].trial, target=plan.trials[i].stimulus, beta=row)
            for i, row in zip(epochs, rows, strict=True)
        ]
        said = read_all(readout, given)
        found[task] = float(np.mean([one.alone == one.target for one in said]))
        found[f"{task}, averaged"] = float(np.mean([one.predicted == one.target for one in said]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first participant")
    parser.add_argument("--participants", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    each: dict[str, list[dict[str, float]]] = {pack: [] for pack in PACKS}
    for seed in range(args.seed, args.seed + args.participants):
        plan, betas, seen = participant(seed)
        for pack in PACKS:
            each[pack].append(shares(pack, plan, betas, seen))
            print(seed, pack, {name: round(value, 3) for name, value in each[pack][-1].items()}, flush=True)
    rows, results = [], {}
    for task in each[PACKS[0]][0]:
        plain, other = (np.array([one[task] for one in each[pack]]) for pack in PACKS)
        better = other - plain
        error = better.std(ddof=1) / np.sqrt(len(better)) if len(better) > 1 else float("nan")
        rows.append([task, f"{plain.mean():.3f}", f"{other.mean():.3f}", f"{better.mean():+.3f} +- {error:.3f}"])
        results[task] = {"tiny": plain.tolist(), "tiny-imagery": other.tolist()}
    print_table("share of epochs named right among six targets", ["task", *PACKS, "difference, paired"], rows)
    if args.json is not None:
        write_json(args.json, {"chance": 1 / 6, "participants": args.participants, "shares": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
