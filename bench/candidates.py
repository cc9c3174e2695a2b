"""Pictures against voxels: the time of a candidate score, best-of-8 of the tiny pack, and encoding of recorded blocks.

Best-of-8: a simulated participant; an encoder fitted to the calibration's betas; of each decoded trial eight pictures
from different noise, of which the encoder's selecting voxels choose one. The picture chosen is compared with the first,
by tokens of the pack's embedder: two-way identification against the other trials' shown pictures. The judging voxels
tell brain correlation. Recorded: Haxby et al. (2001), runs 1 to 6, one run left out at a time; tokens are the tiny
pack's prototypes of the categories; held-out correlation of each voxel, and the category's place among those of the run
by the encoding model (Kay et al. 2008). Intervals: bootstrap over trials, Wilson over blocks.

    python bench/candidates.py [--seed S] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _recorded import END, Session, load
from _report import print_table, write_json
from _simulated_session import simulate_session

from calibration.calibrator import Calibrator
from calibration.voxel_encoder_fit import fit_voxel_encoder
from rtdecode.decode.families.family import family_of
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.score.voxel_encoder import VoxelEncoder, identify, score_candidates
from rtdecode.evaluate.evaluation import embedded
from rtdecode.evaluate.metrics import two_way_counts
from rtdecode.packs import open_pack
from rtdecode.settings import DecodeSettings
from rtdecode.simulate.participant import make_participant
from rtdecode.simulate.visit import NULL, VisitPlan
from rtdecode.statistics import bootstrap_interval, wilson_interval

CANDIDATES = 8
SHARED = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def timing(quick: bool) -> dict[str, float]:
    """Milliseconds of a score of 8 pictures against 15,000 voxels, prediction and 100 decoys included."""
    rng = np.random.default_rng(0)
    voxels, values = (1000, 64) if quick else (15_000, 640)
    encoder = VoxelEncoder(
        voxels=np.arange(voxels),
        centre=np.zeros(voxels, np.float32),
        scale=np.ones(voxels, np.float32),
        basis=rng.standard_normal((48, values)).astype(np.float32),
        token_mean=np.zeros(values, np.float32),
        weights=rng.standard_normal((48, voxels)).astype(np.float32),
        constant=np.zeros(voxels, np.float32),
        held_out=np.ones(voxels, np.float32),
        selects=np.arange(voxels) % 2 == 0,
    )
    tokens = rng.standard_normal((CANDIDATES, values)).astype(np.float32)
    decoys = encoder.predict(rng.standard_normal((100, values)).astype(np.float32))
    beta = rng.standard_normal(voxels).astype(np.float32)
    took = {"8 candidates": [], "with 100 decoys": []}  # type: dict[str, list[float]]
    for _ in range(20):
        for name, others in (("8 candidates", None), ("with 100 decoys", decoys)):
            began = time.perf_counter()
            score_candidates(encoder, beta, encoder.predict(tokens), decoys=others)
            took[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(some)) for name, some in took.items()}


def best_of_eight(seed: int, quick: bool) -> dict[str, Any]:
    """Compare the picture that an encoder chooses of eight with the first, for one simulated participant."""
    plan = VisitPlan(seed=seed, calibration_runs=2 if quick else 6, decoding_runs=1 if quick else 2)
    brain = make_participant(seed)
    session = simulate_session(plan, [brain] * plan.runs)
    pack = open_pack("tiny")
    with TemporaryDirectory() as folder:
        plan.write_stimuli(Path(folder))
        candidates = load_candidates(pack, Path(folder), threads=1)
    calibrator = Calibrator(candidates)
    calibrating = [trial.run <= plan.calibration_runs for trial in session.trials]
    for trial, beta, own in zip(session.trials, session.betas, calibrating, strict=True):
        if own and trial.stimulus != NULL:
            calibrator.add(beta, trial=trial.trial, stimulus=trial.stimulus, run=trial.run)
    calibrator.take_again(session.learned)
    fit = calibrator.fit()
    places = {name: place for place, name in enumerate(candidates.names)}
    tokens = candidates.tokens.reshape(len(candidates.tokens), -1)
    shown = [trial.stimulus for trial, own in zip(session.trials, calibrating, strict=True) if own]
    encoder = fit_voxel_encoder(
        session.betas[np.array(calibrating)], shown, np.stack([tokens[places[name]] for name in shown])
    )
    pipeline = family_of(pack).pipeline(pack, DecodeSettings(), choose("onnx", pack), seed=seed)
    pipeline.take(fit.adapter)
    later = [(t, b) for t, b, own in zip(session.trials, session.betas, calibrating, strict=True) if not own]
    true = np.stack([tokens[places[trial.stimulus]] for trial, _ in later])
    first, chosen, judged = [], [], {"first": [], "chosen": []}  # type: list[Any], list[Any], dict[str, list[float]]
    for trial, beta in later:
        reading = fit.encoding.read(beta)
        category = candidates.categories[int(fit.encoding.categories_of(reading).argmax())]
        settled = pipeline.settle(pipeline.embed(fit.adapter.chosen(beta)), category, trial.trial)
        pictures = [pipeline.picture(settled, f"{trial.trial}-{number}") for number in range(CANDIDATES)]
        shown_as = np.stack([picture for picture in pictures if picture is not None]).transpose(0, 3, 1, 2) / 255
        made = embedded(pack, shown_as.astype(np.float32)).reshape(CANDIDATES, -1)
        predicted = encoder.predict(made)
        best = score_candidates(encoder, beta, predicted)
        first.append(made[0])
        chosen.append(made[best.chosen])
        judged["first"].append(score_candidates(encoder, beta, predicted[:1]).judged["all"])
        judged["chosen"].append(best.judged["all"])
    won = {name: two_way_counts(true, np.stack(some)) / (len(true) - 1) for name, some in
           (("first", first), ("chosen", chosen))}  # fmt: skip
    rng = np.random.default_rng(0)
    gain, brain_gain = won["chosen"] - won["first"], np.array(judged["chosen"]) - np.array(judged["first"])
    return {
        "seed": seed,
        "trials": len(later),
        "encoder_held_out": float(np.sort(encoder.held_out)[-200:].mean()),
        "two_way_first": float(won["first"].mean()),
        "two_way_chosen": float(won["chosen"].mean()),
        "gain": gain.tolist(),
        "gain_interval": bootstrap_interval(gain, rng, resamples=2000),
        "brain_first": float(np.mean(judged["first"])),
        "brain_chosen": float(np.mean(judged["chosen"])),
        "brain_gain_interval": bootstrap_interval(brain_gain, rng, resamples=2000),
    }


def recorded(quick: bool) -> dict[str, Any] | None:
    """Leave one run of Haxby's participant out; None where the data are not here."""
    folder = SHARED / "data" / "task-haxby2001-sub001-runs1-6"
    if not folder.is_dir():
        return None
    runs = load([folder])[: 3 if quick else None]
    session = Session()
    betas = [session.play(run)[END] for run in runs]
    labels = [run.labels for run in runs]
    candidates = load_candidates(open_pack("tiny"), None, threads=1)
    prototypes = {name: one for name, one in zip(candidates.categories, candidates.prototypes, strict=True)}
    known = [np.array([str(label) in prototypes for label in some]) for some in labels]
    y = np.concatenate([one[keep] for one, keep in zip(betas, known, strict=True)])
    named = np.concatenate([one[keep] for one, keep in zip(labels, known, strict=True)])
    of_run = np.concatenate([np.full(int(keep.sum()), place) for place, keep in enumerate(known)])
    tokens = np.stack([prototypes[str(name)].ravel() for name in named])
    parts = [np.flatnonzero(of_run == place) for place in range(len(runs))]
    whole = fit_voxel_encoder(y.astype(np.float32), [str(i) for i in range(len(y))], tokens, parts=parts)
    places = []
    for part in parts:
        left = np.setdiff1d(np.arange(len(y)), part)
        inner = [np.flatnonzero(of_run[left] == place) for place in np.unique(of_run[left])]
        encoder = fit_voxel_encoder(
            y[left].astype(np.float32), [str(i) for i in left], tokens[left], parts=inner, voxels=300
        )
        gallery, where = np.unique(named[part], return_inverse=True)
        predicted = encoder.predict(np.stack([prototypes[str(name)].ravel() for name in gallery]))
        responses = encoder.standardized(y[part])
        for order, place in enumerate(where):
            own_first = [place, *np.delete(np.arange(len(gallery)), place)]
            places.append(int(identify(predicted[own_first], responses[[order] * len(gallery)])[0]))
    hits = int(np.sum(np.array(places) == 1))
    best = np.sort(whole.held_out)[::-1]
    return {
        "voxels": len(best),
        "held_out_best_100": float(best[:100].mean()),
        "held_out_above_.3": int((best > 0.3).sum()),
        "held_out_median": float(np.median(best)),
        "blocks": len(places),
        "categories": len(np.unique(named)),
        "identified": hits / len(places),
        "interval": wilson_interval(hits, len(places)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--participants", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few and small")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    times = timing(args.quick)
    print_table("milliseconds of a candidate score", tuple(times), [tuple(f"{value:.1f}" for value in times.values())])
    real = recorded(args.quick)
    if real is None:
        print(f"no recorded runs at {SHARED}: set RTDECODE_SHARED")
    else:
        print_table(
            "recorded blocks, one run left out",
            ("best 100 voxels, r", "voxels above .3", "median r", "identified", "of"),
            [
                (
                    f"{real['held_out_best_100']:.2f}",
                    real["held_out_above_.3"],
                    f"{real['held_out_median']:.2f}",
                    f"{real['identified']:.0%} [{real['interval'][0]:.0%}-{real['interval'][1]:.0%}]",
                    f"{real['blocks']} blocks, {real['categories']} categories",
                )
            ],
        )
    people = [best_of_eight(args.seed + number, args.quick) for number in range(1 if args.quick else args.participants)]
    rows = [
        (
            f"seed {one['seed']}",
            f"{one['two_way_first']:.1%}",
            f"{one['two_way_chosen']:.1%}",
            f"{one['gain_interval'][0]:+.1%} to {one['gain_interval'][1]:+.1%}",
            f"{one['brain_first']:.3f} to {one['brain_chosen']:.3f}",
        )
        for one in people
    ]
    every = np.concatenate([one["gain"] for one in people])
    pooled = bootstrap_interval(every, np.random.default_rng(0), resamples=2000)
    rows.append(("all", "", f"{every.mean():+.1%}", f"{pooled[0]:+.1%} to {pooled[1]:+.1%}", ""))
    print_table(
        "best of 8 by the voxels that select",
        ("", "first, two-way", "chosen", "gain, 95 %", "brain correlation of the others"),
        rows,
    )
    if args.json:
        figures = {"timing": times, "recorded": real, "best_of_8": people, "gain": float(every.mean()), "all": pooled}
        write_json(args.json, {"seed": args.seed, **figures})
    return 0 if args.quick or times["8 candidates"] <= 50 else 1


if __name__ == "__main__":
    raise SystemExit(main())
