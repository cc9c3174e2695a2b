"""A participant comes again and has changed: what ten new trials bring, with and without those of the earlier visit.

Simulated people are calibrated by 240 pictures and 60 content-free ones. By the next visit a part of what each voxel
answers to is another, responses are weaker and their level has moved. Every decoder sees the same new trials: the
earlier bundle as it is, one of the new trials alone, and one of both. Pictures of the test were shown at neither visit.
What is supported without a picture is judged at the nominal .05.

    python bench/recalibration.py [--seed S] [--people N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from group_prior import NOTHING_SHARED, Drawn, Sizes
from numpy.typing import NDArray

from calibration.calibrator import LEAST_TRIALS, Calibrator
from calibration.earlier_visit import EarlierVisit, only
from calibration.participant_fit import CalibrationFit
from rtdecode.decode.families.tiny.tiny_stages import load_stages
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs import open_pack
from rtdecode.simulate import world
from rtdecode.simulate.population import Person, Population
from rtdecode.simulate.seeds import generator
from rtdecode.statistics import bootstrap_interval, percentile_ranks, wilson_interval

TRIALS = (10, 20, 30, 60)
EARLIER, NULLS, TEST = 240, 60, 80
AS_IS, ALONE, BOTH = "the earlier bundle", "new trials alone", "new trials and the earlier ones"
CHANGED, GAIN, LEVEL = 0.3, 0.8, 0.3
"""Part of the variance of each map that is new, factor of all responses, and deviation by which levels move, in
deviations of a trial's noise."""
NOMINAL = 0.05

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scanned:
    """Trials of a visit: pictures by their place among the candidates, and responses."""

    shown: NDArray[np.int64]
    betas: Float32
    null_betas: Float32


def changed(person: Person, seed: int) -> Person:
    """Return the person some time later."""
    other = Population(seed + 1, NOTHING_SHARED).person(person.number + 500, len(person.places_mm))
    rng = generator(seed, "changed", person.number)
    kept, new = np.float32(GAIN * np.sqrt(1 - CHANGED)), np.float32(GAIN * np.sqrt(CHANGED))
    moved = LEVEL * rng.standard_normal(len(person.mean), np.float32)
    return replace(
        person,
        weights=kept * person.weights + new * other.weights,
        mean=kept * person.mean + new * other.mean + moved,
    )


def scan(
    person: Person, features: NDArray[np.float64], shown: NDArray[np.int64], nulls: int, rng: np.random.Generator
) -> Scanned:
    """Measure responses to pictures, and to some without content."""
    noise = person.noise.draw(rng, np.ones(nulls, np.bool_))
    return Scanned(
        shown=shown, betas=person.betas(features[shown], rng), null_betas=np.asarray(person.mean + noise, np.float32)
    )


def calibrated(visit: Scanned, candidates: Candidates, earlier: EarlierVisit | None, seed: int) -> Calibrator:
    """Collect the trials of a visit."""
    calibrator = Calibrator(candidates, seed=seed, earlier=earlier)
    for n, (picture, beta) in enumerate(zip(visit.shown.tolist(), visit.betas, strict=True)):
        calibrator.add(beta, trial=f"t{n}", stimulus=candidates.names[picture], run=1 + n // 30)
    for n, beta in enumerate(visit.null_betas):
        calibrator.add_null(beta, trial=f"n{n}", run=101 + n // 30)
    return calibrator


def judge(fit: CalibrationFit, test: Scanned, candidates: Candidates) -> dict[str, Any]:
    """Percentile rank among the pictures of the test, categories named right, and what is supported."""
    model, evidence = fit.encoding, fit.evidence
    pictures = model.describe(candidates.tokens[test.shown])
    ranks, right, supported = [], [], []
    for place, beta in enumerate(test.betas):
        reading = model.read(beta)
        ranks.append(float(percentile_ranks(model.pictures_of(reading, pictures)[None])[0, place]))
        right.append(bool(model.categories_of(reading).argmax() == candidates.category[test.shown[place]]))
        supported.append(not evidence.refusal(evidence.p_content(model.content_of(reading)), 1.0, None))
    empty = [evidence.p_content(model.content_of(model.read(beta))) for beta in test.null_betas]
    return {
        "rank": float(np.mean(ranks)),
        "right": float(np.mean(right)),
        "supported": float(np.mean(np.array(supported)[np.array(right)])) if any(right) else 0.0,
        "false": int(evidence.signal[0]) * sum(value <= NOMINAL for value in empty),
        "empty": len(empty),
    }


def study(seed: int, people: int, n_voxels: int, counts: Sequence[int], quick: bool) -> dict[str, Any]:
    """Every decoder of every person, by number of new trials."""
    stages = load_stages(open_pack("tiny"), threads=1)
    n_earlier = 60 if quick else EARLIER
    sizes = Sizes(
        people=people, others=0, strangers=0, pool=1, test=TEST, voxels=n_voxels, trials=(n_earlier // 2 + max(counts),)
    )
    drawn = Drawn(seed, sizes, stages)
    pictures = [drawn.calibration, drawn.test]
    tokens = np.concatenate([one.tokens for one in pictures]).reshape(-1, *stages.prototypes.shape[1:])
    category = np.concatenate([one.category for one in pictures])
    features = np.concatenate([one.features for one in pictures])
    candidates = Candidates(
        names=tuple(f"p{i}" for i in range(len(tokens))),
        tokens=tokens,
        category=category,
        categories=tuple(world.CATEGORIES),
        prototypes=stages.prototypes,
        groups=stages.groups,
    )
    population = Population(seed)
    at = np.arange(len(tokens))
    n_learned = len(drawn.calibration.category)
    found: dict[str, Any] = {name: {} for name in (AS_IS, ALONE, BOTH, "before the change")}
    for number in range(people):
        person = population.person(number, n_voxels)
        rng = generator(seed, "visits", number)
        order = rng.permutation(n_learned)
        first = scan(person, features, order[:n_earlier], NULLS, rng)
        again = changed(person, seed)
        second = scan(again, features, order[n_earlier : n_earlier + max(counts)], 0, rng)
        test = scan(again, features, at[n_learned:], 200, rng)
        before = calibrated(first, candidates, None, seed)
        bundle = before.fit()
        seen, places = only(candidates, before.taken().shown)
        earlier = EarlierVisit(
            session="1", mask=Path("mask"), candidates=seen, trials=replace(before.taken(), shown=places)
        )
        same = scan(person, features, at[n_learned:], 200, rng)
        found["before the change"].setdefault(0, []).append(judge(bundle, same, candidates))
        found[AS_IS].setdefault(0, []).append(judge(bundle, test, candidates))
        for n in counts:
            part = replace(second, shown=second.shown[:n], betas=second.betas[:n])
            for name, known in ((ALONE, None), (BOTH, earlier)):
                fit = calibrated(part, candidates, known, seed).fit()
                found[name].setdefault(n, []).append(judge(fit, test, candidates))
        print(f"person {number + 1} of {people}", file=sys.stderr, flush=True)
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over people."""
    low, high = bootstrap_interval(np.array(values), np.random.default_rng(0), resamples=2000)
    return float(np.mean(values)), low, high


def report(found: dict[str, Any]) -> list[str]:
    """Print the figures; return what falls short."""
    rows, short = [], []
    as_is = [one["rank"] for one in found[AS_IS][0]]
    for name, by_count in found.items():
        for n, people in by_count.items():
            false, empty = (sum(one[key] for one in people) for key in ("false", "empty"))
            low, high = wilson_interval(false, empty)
            of = {key: interval([one[key] for one in people]) for key in ("rank", "right", "supported")}
            more = interval([one["rank"] - then for one, then in zip(people, as_is, strict=True)])
            rows.append(
                [
                    name,
                    n,
                    *("{:.3f} [{:.3f} {:.3f}]".format(*of[key]) for key in ("rank", "right", "supported")),
                    f"{false / empty:.1%} [{low:.1%} {high:.1%}] of {empty}",
                    "{:+.3f} [{:+.3f} {:+.3f}]".format(*more),
                ]
            )
            if name == BOTH and more[1] <= 0:
                short.append(f"{n} new trials: not surely better than the earlier bundle as it is")
            if name == BOTH and low > NOMINAL:
                short.append(f"{n} new trials: {false / empty:.1%} false support, nominal {NOMINAL:.0%}")
    print_table(
        f"{len(as_is)} people; 95 % intervals over people (false support: Wilson, trials pooled); chance .500 and .125",
        ["decoder", "new trials", "rank", "category", "of right ones supported", "false", "rank less as it is"],
        rows,
    )
    return short


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two people, few voxels: does it run?")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    people, voxels, counts = (2, 300, (LEAST_TRIALS + 2,)) if args.quick else (args.people, 1600, TRIALS)
    found = study(args.seed, people, voxels, counts, args.quick)
    short = report(found)
    if args.json:
        write_json(args.json, {"seed": args.seed, "people": people, "decoders": found})
    for line in short:
        print(line, file=sys.stderr)
    return 1 if short and not args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
