"""What stopping on advice saves and costs, and whether the figure that calibration reports holds on new pictures.

Each person of a simulated population is calibrated in six runs of 40 pictures, by the calibrator itself. Stopped: after
the first run by whose end the advice is "enough". Percentile rank of the decoder then, and of that of all trials, among
300 pictures that no calibration has seen; beside it what the calibration reported. Everything follows from the seed.

    python bench/stop_advice.py [--seed S] [--people N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from group_prior import Drawn, Sizes, Visit, interval, visit

from calibration.advice import WORTH, Plan
from calibration.calibrator import Calibrator
from calibration.participant_fit import CalibrationFit
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny.tiny_stages import load_stages
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs import open_pack
from rtdecode.packs.participant_bundle import CurvePoint
from rtdecode.simulate.population import Population
from rtdecode.simulate.seeds import generator
from rtdecode.statistics import percentile_ranks

PER_RUN, RUNS = 40, 6
PLAN = Plan(trials=PER_RUN * RUNS, per_minute=15.0)
COVERED = 0.85
"""Part of the people on whom the reported interval must hold the figure of new pictures: 17 of 20."""


def tested(fit: CalibrationFit, one: Visit, test: np.ndarray) -> float:
    """Percentile rank of the right picture, mean over the test."""
    model = fit.encoding
    components = model.describe(test)
    scores = np.stack([model.pictures_of(model.read(beta), components) for beta in one.test])
    return float(np.diagonal(percentile_ranks(scores)).mean())


def study(one: Visit, candidates: Candidates, test: np.ndarray, runs: int) -> dict[str, Any]:
    """Calibrate a person; judge where it would have been stopped, and at the end."""
    calibrator = Calibrator(candidates)
    stopped: tuple[CurvePoint, CalibrationFit] | None = None
    for run in range(1, runs + 1):
        for trial in range((run - 1) * PER_RUN, run * PER_RUN):
            calibrator.add(one.responses[trial], trial=f"t{trial}", stimulus=f"s{trial}", run=run)
        point = calibrator.status(replace(PLAN, trials=PER_RUN * runs))
        if stopped is None and (point.advice == "enough" or run == runs):
            stopped = point, calibrator.fit()
    assert stopped is not None
    whole = stopped[1] if stopped[0].trials == point.trials else calibrator.fit()
    found = {}
    for name, (told, fit) in {"stopped": stopped, "whole": (point, whole)}.items():
        figure = tested(fit, one, test)
        low, high = told.interval
        found[name] = {
            "trials": told.trials,
            "reported": told.percentile,
            "interval": [low, high],
            "new pictures": figure,
            "covered": bool(low <= figure <= high),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two people of few voxels: does it run?")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    people, voxels, n_test, runs = (2, 200, 40, 2) if arguments.quick else (arguments.people, 1600, 300, RUNS)
    stages = load_stages(open_pack("tiny"), threads=1)
    n = PER_RUN * runs
    sizes = Sizes(people=people, others=0, strangers=0, pool=8, test=n_test, voxels=voxels, trials=(n,))
    drawn = Drawn(arguments.seed, sizes, stages)
    shape = embed_candidates(stages, None).tokens.shape[1:]
    test = drawn.test.tokens.reshape(n_test, *shape)
    population = Population(arguments.seed)
    found = []
    for number in range(people):
        rng = generator(arguments.seed, "stop advice", number)
        one = visit(population.person(1000 + number, voxels), drawn.calibration, drawn.test, n, rng)
        candidates = replace(
            embed_candidates(stages, None),
            names=tuple(f"s{i}" for i in range(n)),
            tokens=one.shown.tokens.reshape(n, *shape),
            category=one.shown.category,
        )
        found.append(study(one, candidates, test, runs))
        print(f"person {number + 1} of {people}: {found[-1]}", file=sys.stderr, flush=True)
    loss = [one["whole"]["new pictures"] - one["stopped"]["new pictures"] for one in found]
    saved = [1 - one["stopped"]["trials"] / one["whole"]["trials"] for one in found]
    covered = {name: sum(one[name]["covered"] for one in found) for name in ("stopped", "whole")}
    print_table(
        f"Stopping on advice, {people} people, {n} trials planned; mean [95 % interval over people]",
        ["figure", "mean"],
        [
            ["trials saved", "{:.0%} [{:.0%} {:.0%}]".format(*interval(saved))],
            ["percentile rank lost", "{:.3f} [{:.3f} {:.3f}]".format(*interval(loss))],
            ["most that anyone lost", f"{max(loss):.3f}"],
            ["reported interval holds new pictures, stopped", f"{covered['stopped']} of {people}"],
            ["reported interval holds new pictures, whole", f"{covered['whole']} of {people}"],
        ],
    )
    if arguments.json:
        write_json(arguments.json, {"seed": arguments.seed, "people": found})
    if arguments.quick:
        return 0
    reasons = []
    if np.mean(loss) > WORTH:
        reasons.append(f"stopping costs {np.mean(loss):.3f}")
    if not np.mean(saved) > 0:
        reasons.append("stopping saves nothing")
    reasons += [
        f"{name}: {count} of {people} are covered" for name, count in covered.items() if count < COVERED * people
    ]
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
