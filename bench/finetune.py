"""Ridge against ridge and fine-tuned network, paired, on simulated participants with 60, 120 and 240 trials.

Each person of a simulated population is calibrated; the tiny pack's network is fine-tuned on the same trials as
`rtdecode engines finetune` does it, sealed, and loaded by the session's pipeline. Both decode the responses to pictures
that no calibration has seen. Figures: percentile rank and first places of the picture shown among these, by cosines of
the tokens that clients are sent, and explained variance of these. Gains are paired, person by person; intervals:
bootstrap over people. Beside them what the command itself says of trials that it set apart. Everything follows from
the seed, as long as the time does not end.

    python bench/finetune.py [--seed S] [--people N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _report import print_table, write_json
from group_prior import Drawn, Sizes, Visit, visit

from calibration import cross_fitting
from calibration.calibrator import Calibrator
from engines.finetune.order import fine_tune_on
from engines.finetune.tiny_tunable import TinyTunable
from engines.finetune.training import Tuning
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.families.tiny.tiny_stages import load_stages
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs import EnginePack, open_pack
from rtdecode.simulate.population import MOSTLY_SHARED, Population
from rtdecode.simulate.seeds import generator
from rtdecode.statistics import bootstrap_interval, percentile_ranks, row_cosines

TRIALS = (60, 120, 240)
PER_RUN = 40
RANK = 8
_FIRST = 2000
FIGURES = {
    "percentile": "percentile rank",
    "first": "first of all",
    "explained": "R2 of tokens sent",
}


def decoded(
    pipeline: TinyPipeline,
    adapter: Adapter,
    network: EnginePack | None,
    one: Visit,
    drawn: Drawn,
) -> dict[str, float]:
    """Decode the responses to unseen pictures as a session does."""
    pipeline.take_network(network, adapter)
    pipeline.take(adapter)
    true = drawn.test.tokens
    sent = [pipeline.embed(adapter.chosen(beta)).tokens.ravel() for beta in one.test]
    cosines = np.stack([row_cosines(tokens, true) for tokens in sent])
    total = np.square(true - true.mean(0)).sum()
    return {
        "percentile": float(np.diagonal(percentile_ranks(cosines)).mean()),
        "first": float(np.mean(cosines.argmax(1) == np.arange(len(true)))),
        "explained": float(1 - np.square(np.stack(sent) - true).sum() / total),
    }


def study(pack: EnginePack, pipeline: TinyPipeline, one: Visit, drawn: Drawn, n: int, tuning: Tuning) -> dict[str, Any]:
    """Calibrate and fine-tune on n trials; decode with and without the network."""
    stages = load_stages(pack)
    layout = stages.prototypes.shape[1:]
    candidates = Candidates(
        names=tuple(f"s{i}" for i in range(n)),
        tokens=one.shown.tokens[:n].reshape(n, *layout),
        category=one.shown.category[:n],
        categories=stages.categories,
        prototypes=stages.prototypes,
        groups=stages.groups,
    )
    calibrator = Calibrator(candidates)
    for i in range(n):
        calibrator.add(one.responses[i], trial=f"t{i}", stimulus=f"s{i}", run=1 + i // PER_RUN)
    trials = calibrator.taken()
    whole = cross_fitting.whole(trials, candidates)
    tunable = TinyTunable(pack, whole.adapter.token_mean, float(candidates.tokens.std(0).mean()), RANK)
    apart = cross_fitting.set_apart(trials, candidates)
    tokens = torch.from_numpy(candidates.tokens)
    done = fine_tune_on(tunable, whole, apart, trials.shown, tokens, tuning, rank=RANK)
    found = {"ridge": decoded(pipeline, whole.adapter, None, one, drawn), "steps": done.figures.steps}
    found["told"] = {
        "percentile": [done.figures.percentile_ridge, done.figures.percentile, *done.figures.percentile_gain],
        "error saved": [done.figures.error_saved, *done.figures.error_saved_interval],
    }
    found["tuned"] = found["ridge"]
    if done.figures.steps:
        with TemporaryDirectory() as folder:
            tunable.write_network(Path(folder) / "network", "bench")
            network = open_pack(str(Path(folder) / "network"))
            found["tuned"] = decoded(pipeline, whole.adapter, network, one, drawn)
    return found


def summary(people: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and paired gains with their intervals over people."""
    found: dict[str, Any] = {"kept": sum(one["steps"] > 0 for one in people)}
    for name in FIGURES:
        ridge, tuned = (np.array([one[way][name] for one in people]) for way in ("ridge", "tuned"))
        gain = tuned - ridge
        low, high = bootstrap_interval(gain, np.random.default_rng(0), resamples=4000)
        found[name] = {
            "ridge": float(ridge.mean()), "tuned": float(tuned.mean()), "gain": float(gain.mean()),
            "interval": [low, high], "worst": float(gain.min()),
        }  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one small brain and few steps: whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trials = (40,) if args.quick else TRIALS
    sizes = Sizes(
        people=args.people, others=0, strangers=0, pool=8, test=24 if args.quick else 200,
        voxels=150 if args.quick else 1000, trials=trials,
    )  # fmt: skip
    tuning = Tuning(steps=10, every=5, seed=args.seed) if args.quick else Tuning(minutes=30.0, seed=args.seed)
    pack = open_pack("tiny")
    stages = load_stages(pack)
    drawn = Drawn(args.seed, sizes, stages)
    pipeline = TinyPipeline(stages)
    population = Population(args.seed, MOSTLY_SHARED)
    people: dict[int, list[dict[str, Any]]] = {n: [] for n in trials}
    for number in range(_FIRST, _FIRST + (1 if args.quick else args.people)):
        person = population.person(number, sizes.voxels)
        one = visit(person, drawn.calibration, drawn.test, max(trials), generator(args.seed, "visit", number))
        for n in trials:
            people[n].append(study(pack, pipeline, one, drawn, n, tuning))
            print(f"person {number}, {n} trials: {people[n][-1]['steps']} steps kept", flush=True)
    by_trials = {n: summary(found) for n, found in people.items()}
    rows = [
        (
            f"{n} trials, {FIGURES[name]}",
            f"{found[name]['ridge']:.3f}",
            f"{found[name]['tuned']:.3f}",
            f"{found[name]['gain']:+.3f} [{found[name]['interval'][0]:+.3f} to {found[name]['interval'][1]:+.3f}]",
            f"{found[name]['worst']:+.3f}",
            f"{found['kept']} of {len(people[n])}",
        )
        for n, found in by_trials.items()
        for name in FIGURES
    ]
    head = ("new pictures", "ridge", "fine-tuned", "gain [95 %]", "worst person", "network kept")
    print_table(f"ridge alone, and with a fine-tuned network; {sizes.test} new pictures", head, rows)
    if args.json:
        write_json(args.json, {"seed": args.seed, "test": sizes.test, "voxels": sizes.voxels,
                               "by_trials": by_trials, "people": people})  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
