"""Stimulus match: how well it tells the true time of a film, how often it is wrong without one, and what it costs.

Simulated parcels whose noise lies in the signal's own spatial patterns, the hardest kind, and is red in time. Plain:
the spatial correlation; calibrated: scales and noise of one earlier film of 200 volumes. Beside them the pilot's
figures of a like simulation. False alarms: runs in which the claim reached 20 at any volume.

    python bench/encoding.py [--seed S] [--runs N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from _report import print_table, write_json
from numpy.typing import NDArray

from rtdecode.decode.score.claim import CLAIM
from rtdecode.decode.score.film_rows import MatchCalibration, calibrate_match, sampled
from rtdecode.decode.score.stimulus_match import SETTLE, FilmMatch, Matched
from rtdecode.estimate.labels import Parcels
from rtdecode.simulate.film_parcels import FilmParcels
from rtdecode.statistics import wilson_interval

T_R_S = 1.49
VOLUMES = 200
WINDOWS = (1, 10, 20, 40)
WORLDS = {"mean r .22, rank 8": (0.22, 8), "mean r .31, rank 20": (0.31, 20)}
PILOT = {
    ("mean r .22, rank 8", False): (0.67, 0.76, 0.82, 0.89),
    ("mean r .22, rank 8", True): (0.95, 1.0, 1.0, 1.0),
    ("mean r .31, rank 20", False): (0.80, 0.93, 0.96, 0.98),
    ("mean r .31, rank 20", True): (0.97, 1.0, 1.0, 1.0),
}
OFFSETS = range(-3, 4)
Float64 = NDArray[np.float64]


def follow(
    predicted: Float64, measured: Float64, learned: MatchCalibration | None, *, window: int = 20, onset_s: float = 0.0
) -> tuple[list[Matched], float, float | None]:
    """Return the matches of a run, the highest claim at any volume, and by how much the film was found to be late."""
    match = FilmMatch(
        predicted, predicted_t_r_s=T_R_S, t_r_s=T_R_S, onset_s=onset_s, calibration=learned, window=window
    )
    found, highest = [], match.claim
    for index, values in enumerate(measured):
        one = match.add(index, values)
        highest = max(highest, match.claim)
        if isinstance(one, Matched):
            found.append(one)
    return found, highest, match.offset_s


def learned_of(world: FilmParcels) -> MatchCalibration:
    shown = world.predicted(1, VOLUMES)
    return calibrate_match(world.measured(shown, 1), shown)


def two_way(seeds: Sequence[int], parcels: int) -> list[dict[str, Any]]:
    """Two-way accuracy by world, score and window: the share of decoys that match worse."""
    rows = []
    for name, (correlation, rank) in WORLDS.items():
        shares: dict[tuple[bool, int], list[float]] = {}
        for seed in seeds:
            world = FilmParcels(seed=seed, parcels=parcels, rank=rank, correlation=correlation, shared=1.0)
            learned = learned_of(world)
            predicted = world.predicted(2, VOLUMES)
            measured = world.measured(predicted, 2)
            for calibrated in (False, True):
                for window in WINDOWS:
                    found = follow(predicted, measured, learned if calibrated else None, window=window)[0]
                    full = [one.rank for one in found if one.volumes == window]
                    shares.setdefault((calibrated, window), []).append(float(np.mean(full)))
        for calibrated in (False, True):
            figures = [float(np.mean(shares[calibrated, window])) for window in WINDOWS]
            rows.append({"world": name, "calibrated": calibrated, "two_way": figures, "pilot": PILOT[name, calibrated]})
    return rows


def offset_sweep(seeds: Sequence[int], parcels: int) -> dict[str, list[float]]:
    """Mean z of the window where the film is taken to have begun some volumes off, before an offset is estimated."""
    means: dict[str, list[list[float]]] = {"plain": [], "calibrated": []}
    for seed in seeds:
        world = FilmParcels(seed=seed, parcels=parcels, shared=1.0)
        learned = learned_of(world)
        predicted = world.predicted(2, VOLUMES)
        measured = world.measured(predicted, 2)[:SETTLE]
        for name, chosen in (("plain", None), ("calibrated", learned)):
            swept = [follow(predicted, measured, chosen, onset_s=off * T_R_S)[0][-10:] for off in OFFSETS]
            means[name].append([float(np.mean([one.z for one in some])) for some in swept])
    return {name: np.mean(values, axis=0).tolist() for name, values in means.items()}


def late_films(seeds: Sequence[int], parcels: int) -> list[dict[str, Any]]:
    """How near the estimated offset of films that begin late is, calibrated."""
    rows = []
    for late_s in (0.0, 1.5, 4.0, 8.0):
        errors = []
        for seed in seeds:
            world = FilmParcels(seed=seed, parcels=parcels, shared=1.0)
            predicted = world.predicted(2, VOLUMES)
            middles = (np.arange(VOLUMES) + 0.5) * T_R_S
            seen = sampled(predicted, T_R_S, middles - late_s)
            offset_s = follow(predicted, world.measured(seen, 2), learned_of(world))[2]
            errors.append(math.nan if offset_s is None else abs(offset_s - late_s))
        known = [one for one in errors if not math.isnan(one)]
        rows.append({"late_s": late_s, "found": len(known), "of": len(errors), "worst_s": max(known, default=math.nan)})
    return rows


def unwatched(seed: int, what: str) -> tuple[Float64, Float64, FilmParcels]:
    """Return a prediction, and what is measured of a brain that sees something else."""
    world = FilmParcels(seed=seed, parcels=60, shared=1.0)
    predicted = world.predicted(2, VOLUMES)
    if what == "another film":
        return predicted, world.measured(world.predicted(3, VOLUMES), 2), world
    if what == "shuffled time":
        order = np.random.default_rng(seed).permutation(VOLUMES)
        return predicted, world.measured(predicted, 2)[order], world
    return predicted, world.measured(predicted, 2, following=np.zeros(VOLUMES, bool)), world


def false_alarms(seed: int, runs: int) -> list[dict[str, Any]]:
    """Claims and mean rank where the film is not followed, looked at after every volume."""
    rows = []
    for what in ("another film", "shuffled time", "eyes closed"):
        for calibrated in (False, True):
            claims, shares = 0, []
            for number in range(runs):
                predicted, measured, world = unwatched(seed * 100_000 + number, what)
                learned = learned_of(world) if calibrated else None
                found, highest, _ = follow(predicted, measured, learned)
                claims += highest >= CLAIM
                shares.append(float(np.mean([one.rank for one in found])))
            spread = 1.96 * float(np.std(shares, ddof=1)) / math.sqrt(runs)
            mean = float(np.mean(shares))
            rows.append(
                {
                    "what": what,
                    "calibrated": calibrated,
                    "runs": runs,
                    "alarms": claims / runs,
                    "interval": wilson_interval(claims, runs),
                    "rank": mean,
                    "rank_interval": (mean - spread, mean + spread),
                }
            )
    return rows


def cost(quick: bool) -> dict[str, dict[str, float]]:
    """Milliseconds a volume, of 600,000 voxels and 1,000 parcels, beside nilearn's masker in the same run.

    By the clock and of the processor, which other work on the machine does not lengthen so much.
    """
    from nilearn.maskers import NiftiLabelsMasker

    shape = (104, 104, 56) if not quick else (40, 40, 20)
    n_parcels = 1000 if not quick else 50
    rng = np.random.default_rng(0)
    labels = (np.arange(math.prod(shape)) * n_parcels // math.prod(shape) + 1).reshape(shape).astype(np.int16)
    volume = rng.standard_normal(shape).astype(np.float32) + 100
    places = labels.ravel().astype(np.int64) - 1
    sizes = np.bincount(places)
    parcels = Parcels(names=tuple(map(str, range(n_parcels))), dropped=(), places=places, sizes=sizes)
    masked = volume.ravel()
    means = timed(lambda: parcels.means(masked))
    masker = NiftiLabelsMasker(
        labels_img=nibabel.Nifti1Image(labels, np.eye(4)), resampling_target=None, standardize=None
    )
    image = nibabel.Nifti1Image(volume, np.eye(4))
    masker.fit()
    theirs = np.ravel(masker.transform(image))
    np.testing.assert_allclose(parcels.means(masked), theirs, rtol=1e-4)
    nilearn = timed(lambda: masker.transform(image), repeats=3)
    world = FilmParcels(seed=0, parcels=n_parcels)
    predicted = world.predicted(2, VOLUMES)
    measured = world.measured(predicted, 2)
    match = FilmMatch(
        predicted,
        predicted_t_r_s=T_R_S,
        t_r_s=T_R_S,
        onset_s=0.0,
        calibration=learned_of(world),
        networks=[f"network {place % 7}" for place in range(n_parcels)],
    )
    volumes = iter(enumerate(measured))
    matches = timed(lambda: match.add(*next(volumes)), repeats=len(measured))
    kinds = {"clock": 0, "processor": 1}
    return {
        kind: {
            "parcel_means_ms": float(np.median(means[place])),
            "match_ms": float(np.median(matches[place])),
            "match_worst_ms": float(np.max(matches[place])),
            "nilearn_ms": float(np.median(nilearn[place])),
        }
        for kind, place in kinds.items()
    }


def timed(step: Callable[[], object], repeats: int = 20) -> tuple[list[float], list[float]]:
    """Milliseconds of each run of a step, by the clock and of the processor."""
    clock, processor = [], []
    for _ in range(repeats):
        began, computed = time.perf_counter(), time.process_time()
        step()
        processor.append(1e3 * (time.process_time() - computed))
        clock.append(1e3 * (time.perf_counter() - began))
    return clock, processor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1000, help="of each kind without the film")
    parser.add_argument("--quick", action="store_true", help="few and small")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    runs = 20 if args.quick else args.runs
    seeds = [args.seed * 1000 + number for number in range(2 if args.quick else 10)]
    parcels = 100 if args.quick else 1000
    accuracy = two_way(seeds, parcels)
    sweep = offset_sweep(range(args.seed * 1000, args.seed * 1000 + (4 if args.quick else 30)), min(parcels, 300))
    late = late_films(seeds, parcels)
    alarms = false_alarms(args.seed, runs)
    times = cost(args.quick)
    rows = [
        (
            f"{one['world']}, {'calibrated' if one['calibrated'] else 'plain'}",
            *(f"{share:.2f} ({pilot:.2f})" for share, pilot in zip(one["two_way"], one["pilot"], strict=True)),
        )
        for one in accuracy
    ]
    print_table("two-way accuracy, and the pilot's", ("", *(f"{window} volumes" for window in WINDOWS)), rows)
    rows = [(name, *(f"{z:.2f}" for z in values)) for name, values in sweep.items()]
    print_table("match (z) where the film is taken to begin volumes later", ("", *map(str, OFFSETS)), rows)
    late_rows = [(one["late_s"], f"{one['found']} of {one['of']}", f"{one['worst_s']:.2f}") for one in late]
    print_table("films that begin late, s, calibrated", ("late by", "found", "largest error"), late_rows)
    alarm_rows = [
        (
            f"{one['what']}, {'calibrated' if one['calibrated'] else 'plain'}",
            one["runs"],
            f"{one['alarms']:.3f} [{one['interval'][0]:.3f}-{one['interval'][1]:.3f}]",
            f"{one['rank']:.3f} [{one['rank_interval'][0]:.3f}-{one['rank_interval'][1]:.3f}]",
        )
        for one in alarms
    ]
    print_table("without the film", ("", "runs", "claimed at any time", "rank, chance .5"), alarm_rows)
    cost_rows = [(kind, *(f"{value:.2f}" for value in some.values())) for kind, some in times.items()]
    print_table("milliseconds a volume", ("by", *times["clock"]), cost_rows)
    if args.json:
        write_json(
            args.json,
            {
                "seed": args.seed,
                "two_way": accuracy,
                "offset_sweep": sweep,
                "late_films": late,
                "false_alarms": alarms,
                "cost": times,
            },
        )
    peak = args.quick or all(int(np.argmax(values)) == list(OFFSETS).index(0) for values in sweep.values())
    return 0 if peak and all(one["interval"][0] <= 0.05 for one in alarms) else 1


if __name__ == "__main__":
    raise SystemExit(main())
