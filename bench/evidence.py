"""Whether evidence can say no: false support by kind of trial, power, sets, and claims about whole sessions.

Simulated participants of one population, betas of the whole estimation chain. Each is calibrated twice, if not told
otherwise both times by 330 pictures in eleven runs: once with 60 content-free pictures in two runs of their own, half
an hour of scanning in all, and once with 40 of the pictures shown twice. What is decoded later: ordinary trials, and
strata without a picture in them or with less of it. Wilson intervals; trials of one participant are not independent,
so rates by participant stand beside.

    python bench/evidence.py [--seed S] [--participants N] [--picture-runs N] [--final-at T] [--jobs N] [--quick]
                             [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _evidence_report import EMPTY, NOMINAL, missed, report
from _report import write_json
from _simulated_session import SimulatedSession, other_brain, simulate_session
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import betabinom, kstest

from calibration.calibrator import Calibrator
from calibration.participant_fit import CalibrationFit
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.score.alarm import ContentAlarm
from rtdecode.decode.score.candidates import Candidates
from rtdecode.decode.score.claim import CLAIM, announced_factor, rate_limit, support_factor
from rtdecode.decode.score.encoding import Reading
from rtdecode.decode.score.evidence import CATEGORY, Evidence, margin
from rtdecode.packs import open_pack
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.participant import make_participant
from rtdecode.simulate.population import Population
from rtdecode.simulate.visit import NULL, Stratum, VisitPlan
from rtdecode.simulate.world import CATEGORIES
from rtdecode.statistics import wilson_interval

SESSIONS = 2000
EXACT_DRAWS = 1999
ORDINARY = "normal"
ORDINARY_RUNS, RUNS_PER_STRATUM = 9, 3
PICTURE_RUNS, NULL_RUNS, REPEATS = 11, 2, 40
FINAL_AT_S = EstimateSettings().final_at_s
OTHER = "other participant"
STRATA: dict[str, Stratum] = {
    ORDINARY: Stratum(),
    "response without content": Stratum(kind="null"),
    "no response": Stratum(kind="blank"),
    "wrong picture": Stratum(wrong=True),
    OTHER: Stratum(),
    "half signal": Stratum(kind="half"),
    "moved, without content": Stratum(kind="null", spike=True),
    "moved, normal": Stratum(spike=True),
}
ATTRIBUTES = (CATEGORY, "semantic", "spatial")
"""What is told apart of a picture: its category, and the token groups of the tiny pack."""
Float64 = NDArray[np.float64]
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SHORT = (ORDINARY, "response without content")


def runs_of(stratum: str) -> int:
    """Return how many runs there are of a stratum."""
    return ORDINARY_RUNS if stratum == ORDINARY else RUNS_PER_STRATUM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Decoded trials of one stratum of one participant."""

    run: NDArray[np.int64]
    supported: NDArray[np.bool_]
    ever_supported: NDArray[np.bool_]
    p_content: NDArray[np.float64]
    evidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    announced: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    plausible: NDArray[np.bool_]
    p_agreement: NDArray[np.float64]
    attributes: NDArray[np.bool_]


def decode(
    session: SimulatedSession, plan: VisitPlan, names: Sequence[str]
) -> tuple[CalibrationFit, dict[str, Judged]]:
    """Calibrate on the calibration runs, and judge the trials of the other ones by stratum."""
    with TemporaryDirectory() as folder:
        plan.write_stimuli(Path(folder))
        candidates = load_candidates(open_pack("tiny"), Path(folder), threads=1)
    calibrator = Calibrator(candidates)
    for trial, beta in zip(session.trials, session.betas, strict=True):
        if trial.run > plan.calibration_runs:
            continue
        if trial.stimulus == NULL:
            calibrator.add_null(beta, trial=trial.trial, run=trial.run)
        else:
            calibrator.add(beta, trial=trial.trial, stimulus=trial.stimulus, run=trial.run)
    calibrator.take_again(session.learned)
    fit = calibrator.fit()
    found, first = {}, plan.calibration_runs + 1
    for name in names:
        found[name] = _judge(fit, candidates, session, range(first, first + runs_of(name)))
        first += runs_of(name)
    return fit, found


def _judge(fit: CalibrationFit, candidates: Candidates, session: SimulatedSession, runs: range) -> Judged:
    evidence, model = fit.evidence, fit.encoding
    pool = [i for i, name in enumerate(candidates.names) if name not in set(fit.figures.stimuli)]
    components = model.describe(candidates.tokens[pool])
    names = [candidates.names[i] for i in pool]
    parts = model.parts(candidates.groups)
    rows: list[dict[str, Any]] = []
    for trial, beta, early in zip(session.trials, session.betas, session.early, strict=True):
        if trial.run not in runs:
            continue
        reading = model.read(beta)
        scores = model.categories_of(reading)
        shares = np.exp(log_softmax(scores))
        likelihood = model.pictures_of(reading, components)
        announced = names.index(trial.stimulus)
        category = candidates.categories.index(trial.condition)
        supported, p_content = _support(fit, reading)
        probability = evidence.probability(float(margin(scores)), 1 / len(scores))
        p_category = evidence.p_category(float(np.log(shares.max())))
        p_groups = evidence.p_groups([model.content_of(reading, part) for part in parts])
        told = dict(zip(ATTRIBUTES[1:], p_groups, strict=True))
        unknown = evidence.unknown(p_category, probability, told) if supported else ATTRIBUTES
        rows.append(
            {
                "run": trial.run,
                "supported": supported,
                "ever_supported": supported or any(_support(fit, model.read(one))[0] for one in early),
                "p_content": p_content,
                "evidence": probability,
                "right": scores.argmax() == category,
                "announced": category,
                "probabilities": shares,
                "plausible": evidence.plausible(shares),
                "p_agreement": float((likelihood >= likelihood[announced]).mean()),
                "attributes": [name not in unknown for name in ATTRIBUTES],
            }
        )
    return Judged(**{name: np.array([row[name] for row in rows]) for name in rows[0]})


def _support(fit: CalibrationFit, reading: Reading) -> tuple[bool, float]:
    """Whether a trial is supported, and the p-value of its content."""
    evidence = fit.evidence
    p_content, p_motion = evidence.p_content(fit.encoding.content_of(reading)), evidence.p_motion(reading.distance)
    return not evidence.refusal(p_content, p_motion, evidence.p_signal(reading.signal)), p_content


Person = dict[str, tuple[Evidence, dict[str, Judged]]]
"""Of each kind of calibration, its evidence and what it was judged on, by stratum."""


def participant(number: int, *, seed: int, picture_runs: int, final_at_s: float, quick: bool) -> Person:
    """Scan, calibrate and judge one participant in both ways."""
    began_s = time.monotonic()
    population = Population(seed)
    own = 1000 * (seed + 1) + number
    brain = make_participant(own, population=population)
    stranger = other_brain(brain, make_participant(own + 500, population=population))
    found = {}
    for kind, names, changes in (
        ("null trials", tuple(STRATA), {"null_runs": NULL_RUNS}),
        ("repeats", SHORT, {"repeats": REPEATS}),
    ):
        names = SHORT if quick else names
        calibration_runs = picture_runs + changes.get("null_runs", 0)
        plan = VisitPlan(
            seed=own + (0 if kind == "null trials" else 250),
            calibration_runs=calibration_runs,
            trials_per_run=30,
            volumes_per_run=90,
            decoding_runs=sum(runs_of(name) for name in names),
            strata=tuple(STRATA[name] for name in names for _ in range(runs_of(name))),
            **changes,
        )
        brains = [brain] * calibration_runs + [
            stranger if name == OTHER else brain for name in names for _ in range(runs_of(name))
        ]
        fit, judged = decode(simulate_session(plan, brains, final_at_s), plan, names)
        if fit.figures.null != kind:
            raise RuntimeError(f"expected evidence to rest on {kind}, got {fit.figures.null}")
        found[kind] = (fit.evidence, judged)
    print(f"participant {number + 1}: {time.monotonic() - began_s:.0f} s", flush=True)
    return found


def rate(found: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson_interval(int(found.sum()), len(found))
    return {"rate": float(found.mean()), "interval": [low, high], "n": len(found)}


def highest_by_chance(found: Sequence[tuple[Evidence, NDArray[np.bool_]]]) -> float:
    """How often a participant of so many would have as many trials supported if these were as the nulls are.

    A limit that is the `j`-th of `m` nulls passes a share of further ones that is distributed as Beta(j, m + 1 - j).
    Of the participant for whom that is the least likely, times the number of participants (Bonferroni).
    """
    least = 1.0
    for evidence, supported in found:
        nulls = int(evidence.independent_nulls[0])
        passing = int(float(evidence.level[0]) * (nulls + 1) + 1e-9)
        limit = betabinom(len(supported), passing, nulls + 1 - passing)
        least = min(least, float(limit.sf(int(supported.sum()) - 1)) * len(found))
    return least


def claims(people: Sequence[Person], stratum: str, rng: np.random.Generator) -> dict[str, Any]:
    """How often sessions of a stratum are ever claimed to decode, looking after every trial."""
    free, announced = np.zeros(SESSIONS, bool), np.zeros(SESSIONS, bool)
    for session in range(SESSIONS):
        evidence, judged = people[session % len(people)]["null trials"]
        trials = judged[stratum]
        limit = rate_limit(float(evidence.level[0]), int(evidence.independent_nulls[0]))
        order = rng.permutation(len(trials.run))
        factors = [support_factor(bool(one), limit) for one in trials.supported[order]]
        free[session] = np.cumprod(factors).max() >= CLAIM
        won, best = 1.0, 1.0
        for run in np.unique(trials.run):
            own = np.flatnonzero(trials.run == run)
            labels = rng.permutation(trials.announced[own])
            for place, trial in enumerate(own):
                won *= announced_factor(trials.probabilities[trial], int(labels[place]), labels[place:].tolist())
                best = max(best, won)
        announced[session] = best >= CLAIM
    return {"truth-free": rate(free), "announced": rate(announced)}


def trials_to_claim(people: Sequence[Person]) -> dict[str, Any]:
    """After how many trials ordinary sessions are claimed, in the order in which they were scanned."""
    found: dict[str, list[float]] = {"truth-free": [], "announced": []}
    for one in people:
        evidence, judged = one["null trials"]
        trials = judged[ORDINARY]
        limit = rate_limit(float(evidence.level[0]), int(evidence.independent_nulls[0]))
        free = np.cumprod([support_factor(bool(x), limit) for x in trials.supported])
        factors = []
        for run in np.unique(trials.run):
            own = np.flatnonzero(trials.run == run)
            factors += [
                announced_factor(trials.probabilities[i], int(trials.announced[i]), trials.announced[own[k:]].tolist())
                for k, i in enumerate(own)
            ]
        for name, won in (("truth-free", free), ("announced", np.cumprod(factors))):
            reached = np.flatnonzero(won >= CLAIM)
            found[name].append(float(reached[0] + 1) if len(reached) else float("inf"))
    return {
        name: {"median": float(np.median(v)), "claimed": int(np.isfinite(v).sum()), "of": len(v)}
        for name, v in found.items()
    }


def alarms(people: Sequence[Person], stratum: str) -> dict[str, Any]:
    """In how many participants the alarm of content rings, and the lowest mean rank of each."""
    lowest, rung = [], 0
    for one in people:
        evidence, judged = one["null trials"]
        alarm, ranks, rang = ContentAlarm(evidence), [], False
        for p_content in judged[stratum].p_content:
            alarm.add(float(p_content))
            rang |= alarm.rings()
            if alarm.mean_rank is not None:
                ranks.append(alarm.mean_rank)
        lowest.append(min(ranks))
        rung += rang
    return {"rung": rung, "of": len(people), "lowest_mean_rank": lowest}


def uniformity(found: Sequence[Float64], nulls: Sequence[int], rng: np.random.Generator) -> dict[str, float]:
    """Kolmogorov-Smirnov test of p-values, those of each participant against so many nulls of their own.

    Trials that are judged by the same nulls have p-values that depend on each other. As if they did not
    (`if_independent`), the test rejects exact ones far too often (`independent_rejects_exact`); so `p` is how often as
    large a statistic comes where trials are drawn as the nulls are.
    """

    def statistic(values: Sequence[Float64], rng: np.random.Generator) -> Any:
        spread = [p - rng.random(len(p)) / (n + 1) for p, n in zip(values, nulls, strict=True)]
        return kstest(np.concatenate(spread), "uniform")

    def exact(trials: int, own: int) -> Float64:
        above = own - np.searchsorted(np.sort(apart.random(own)), apart.random(trials))
        return np.asarray((1 + above) / (own + 1))

    here, (apart,) = statistic(found, rng), rng.spawn(1)
    shape = [(len(p), n) for p, n in zip(found, nulls, strict=True)]
    drawn = [statistic([exact(*one) for one in shape], apart) for _ in range(EXACT_DRAWS)]
    return {
        "statistic": float(here.statistic),
        "p": (1 + sum(one.statistic >= here.statistic for one in drawn)) / (1 + EXACT_DRAWS),
        "if_independent": float(here.pvalue),
        "independent_rejects_exact": sum(one.pvalue < NOMINAL for one in drawn) / EXACT_DRAWS,
    }


def summarise(people: Sequence[Person], rng: np.random.Generator) -> dict[str, Any]:
    figures: dict[str, Any] = {"strata": {}}
    for kind in ("null trials", "repeats"):
        for stratum in people[0][kind][1]:
            parts = [one[kind][1][stratum] for one in people]
            supported = np.concatenate([part.supported for part in parts])
            right = np.concatenate([part.right for part in parts])
            named = np.concatenate([part.attributes[:, 0] for part in parts])
            figures["strata"].setdefault(kind, {})[stratum] = {
                "supported": rate(supported),
                "ever_supported": rate(np.concatenate([part.ever_supported for part in parts])),
                "by_participant": [float(part.supported.mean()) for part in parts],
                "by_participant_p": highest_by_chance(
                    [(one[kind][0], one[kind][1][stratum].supported) for one in people]
                ),
                "accuracy": float(right.mean()),
                "evidence": float(np.concatenate([part.evidence for part in parts]).mean()),
                "right_supported": rate(supported[right]),
                "attributes": {
                    name: rate(np.concatenate([part.attributes[:, place] for part in parts]))
                    for place, name in enumerate(ATTRIBUTES)
                },
                "right_named": rate(right[named]) if named.any() else None,
                "right_guessed": rate(right[supported & ~named]) if (supported & ~named).any() else None,
                "covered": rate(np.concatenate([p.plausible[np.arange(len(p.run)), p.announced] for p in parts])),
                "set_size": float(np.concatenate([p.plausible.sum(1) for p in parts]).mean()),
                "disagreement_rejected": rate(np.concatenate([p.p_agreement <= NOMINAL for p in parts])),
            }
    ordinary = [judged[ORDINARY] for one in people for _, judged in one.values()]
    figures["covered_by_category"] = [
        rate(np.concatenate([part.plausible[part.announced == c, c] for part in ordinary]))
        for c in range(len(CATEGORIES))
    ]
    empty = [one["null trials"][1]["response without content"].p_content for one in people]
    sizes = [len(one["null trials"][0].content_null) for one in people]
    figures["uniformity"] = uniformity(empty, sizes, rng)
    nulls = [name for name in (*EMPTY, "wrong picture") if name in people[0]["null trials"][1]]
    figures["claims"] = {name: claims(people, name, rng) for name in nulls}
    figures["trials_to_claim"] = trials_to_claim(people)
    figures["alarm"] = {name: alarms(people, name) for name in people[0]["null trials"][1]}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="fixes population, participants and draws (default 0)")
    parser.add_argument("--participants", type=int, default=16)
    parser.add_argument("--picture-runs", type=int, default=PICTURE_RUNS, help="of 30 trials each, to calibrate")
    parser.add_argument("--final-at", type=float, default=FINAL_AT_S, help="seconds after onset that betas are final")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="participants at a time, a thread each")
    parser.add_argument("--quick", action="store_true", help="one participant, two strata: does it run?")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.quick:
        args.participants, args.picture_runs = 1, 4
    scan = partial(
        participant, seed=args.seed, picture_runs=args.picture_runs, final_at_s=args.final_at, quick=args.quick
    )
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # read by the spawned, when they import the libraries
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        people = list(pool.map(scan, range(args.participants)))
    figures = summarise(people, np.random.default_rng(args.seed))
    report(figures)
    if args.json:
        write_json(args.json, figures)
    behind = missed(figures)
    for what in behind:
        print(f"Missed: {what}", file=sys.stderr)
    return 1 if behind and not args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
