"""What earlier people's maps bring a new one: percentile rank of pictures by number of calibration trials.

New people of a simulated population are decoded with a prior that was learned from others, from scratch, by the
calibration that came before (a token ridge), and by peers of scikit-learn. All see the same responses, in units of the
noise that stretches of rest show. No picture of the test is in anyone's calibration, nor among those that the
components were learned from. Everything follows from the seed.

    python bench/group_prior.py --seed S [--people N] [--others P] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _group_prior_peers import earlier_calibration, ridge_cv, shrinkage_lda
from _report import print_table, write_json
from numpy.typing import NDArray

from calibration.encoding.encoder import PriorOf, fit_encoder
from calibration.encoding.group_prior import GroupPrior, PlacedPrior, learn_group_prior, statistics_of
from calibration.encoding.maps import MapPrior
from calibration.encoding.picture_space import PictureSpace, learn_picture_space
from calibration.regression import folds
from rtdecode.decode.families.tiny.stimulus_tokens import embed_pictures
from rtdecode.decode.families.tiny.tiny_stages import TinyStages, load_stages
from rtdecode.packs import open_pack
from rtdecode.simulate import world
from rtdecode.simulate.features import picture_features
from rtdecode.simulate.population import LESS_SHARED, MOSTLY_SHARED, Person, Population, Share
from rtdecode.simulate.seeds import generator
from rtdecode.statistics import bootstrap_interval, percentile_ranks

TRIALS = (0, 10, 20, 30, 60, 120, 240)
GUARDED = (10, 30, 120)
"""Trials after which people are judged of whom the prior knows nothing."""
FEWEST = 8
"""Trials from which some are held out."""
SHARES = {"10 % individual": MOSTLY_SHARED, "40 % individual": LESS_SHARED}
NOTHING_SHARED = Share(individual=0.875, voxel=0.125)
PRIOR, OWN, EARLIER, LDA, RIDGE = "prior of the others", "from scratch", "earlier calibration", "LDA", "RidgeCV"
N_REST, N_FOILS = 100, 99
N_ORDERS = 50
"""Of wrong announcements a person: one tells chance from a bias too badly."""
_FIRST_NEW = 1000

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Some pictures: what the simulated brains see of them, their tokens, and their categories."""

    features: Float64
    tokens: Float32
    category: Ints

    def take(self, chosen: Ints) -> Pictures:
        """Return some of them."""
        return Pictures(features=self.features[chosen], tokens=self.tokens[chosen], category=self.category[chosen])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sizes:
    """How much is simulated."""

    people: int
    others: int
    strangers: int
    pool: int
    test: int
    voxels: int
    trials: tuple[int, ...]


class Drawn:
    """All pictures of a bench, each drawn once."""

    def __init__(self, seed: int, sizes: Sizes, stages: TinyStages) -> None:
        self._stages = stages
        self._seen: set[bytes] = set()
        n = max(sizes.trials)
        self.pool = self._draw(generator(seed, "pool"), sizes.pool)
        self.calibration = self._draw(generator(seed, "calibration"), 2 * n)
        self.test = self._draw(generator(seed, "test"), sizes.test)
        self.foils = self._draw(generator(seed, "foils"), N_FOILS)

    def _draw(self, rng: np.random.Generator, n: int) -> Pictures:
        scenes, pixels = [], []
        while len(scenes) < n:
            scene = world.sample_scene(rng, world.CATEGORIES[len(scenes) % len(world.CATEGORIES)])
            picture = world.render(scene)[0]
            if picture.tobytes() not in self._seen:
                self._seen.add(picture.tobytes())
                scenes.append(scene)
                pixels.append(picture)
        tokens = [embed_pictures(self._stages, np.stack(pixels[i : i + 64])) for i in range(0, n, 64)]
        return Pictures(
            features=np.asarray(picture_features(scenes), np.float64),
            tokens=np.concatenate(tokens).reshape(n, -1).astype(np.float32),
            category=np.array([world.CATEGORIES.index(scene.category) for scene in scenes]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visit:
    """What was measured of a person: responses and rest in units of each voxel's noise."""

    places_mm: Float64
    shown: Pictures
    responses: Float32
    rest: Float32
    test: Float32


def visit(person: Person, pool: Pictures, test: Pictures, n: int, rng: np.random.Generator) -> Visit:
    """Measure a person while n pictures of a pool, and those of the test, are shown."""
    shown = pool.take(rng.choice(len(pool.category), n, replace=False).astype(np.int64))
    rest = person.rest(N_REST, rng)
    unit = rest.std(0)
    return Visit(
        places_mm=person.places_mm,
        shown=shown,
        responses=person.betas(shown.features, rng) / unit,
        rest=(rest - rest.mean(0)) / unit,
        test=person.betas(test.features, rng) / unit,
    )


class Decoders:
    """The decoders that are compared, of one group of earlier people."""

    def __init__(self, space: PictureSpace, drawn: Drawn, group: GroupPrior, groups: tuple[slice, ...]) -> None:
        self._space, self._drawn, self._group, self._groups = space, drawn, group, groups
        self._test = space(drawn.test.tokens)
        self._foils = space(drawn.foils.tokens)

    def encoding(self, one: Visit, n: int, *, with_group: bool) -> Float64:
        """Log-likelihood (tests, tests) of each picture of the test."""
        scratch = MapPrior(covariance=np.diag(self._space.spectrum))
        priors: list[PriorOf] = [lambda _: scratch]
        if with_group:
            priors.insert(0, PlacedPrior(group=self._group, places_mm=one.places_mm))
        encoder = fit_encoder(
            one.responses[:n],
            self._space(one.shown.tokens[:n]),
            priors,
            parts=folds(np.arange(n), least=4) if n >= FEWEST else [],
            shown=np.arange(n),
            rest=one.rest,
            foils=self._foils,
        )
        return encoder.whole.scores(one.test, self._test)

    def peers(self) -> dict[str, Callable[[Visit, int], Float64]]:
        """Return what else is compared: scores (tests, tests) from a visit and a number of its trials."""
        drawn, space = self._drawn, self._space
        return {
            EARLIER: lambda one, n: earlier_calibration(
                one.responses[:n], one.shown.tokens[:n], one.test, drawn.test.tokens, self._groups
            ),
            LDA: lambda one, n: shrinkage_lda(one.responses[:n], one.shown.category[:n], one.test, drawn.test.category),
            RIDGE: lambda one, n: ridge_cv(one.responses[:n], space(one.shown.tokens[:n]), one.test, self._test),
        }


def rank(scores: Float64) -> float:
    """Percentile rank of the right picture, mean over trials."""
    return float(np.diagonal(percentile_ranks(scores)).mean())


def study(seed: int, share: Share, sizes: Sizes, drawn: Drawn, stages: TinyStages) -> dict[str, Any]:
    """Measure one share: percentile ranks by method, trials and person."""
    space = learn_picture_space(drawn.pool.tokens, stages.groups)
    population = Population(seed, share)
    n, n_test = max(sizes.trials), len(drawn.test.category)

    def of(person: Person, pool: Pictures, purpose: str) -> Visit:
        return visit(person, pool, drawn.test, n, generator(seed, purpose, person.number))

    statistics = []
    for number in range(sizes.others):
        one = of(population.person(number, sizes.voxels), drawn.pool, "earlier visit")
        statistics.append(statistics_of(space(one.shown.tokens), one.responses, one.places_mm))
    began = time.perf_counter()
    group = learn_group_prior(statistics, space.spectrum)
    learned_s = time.perf_counter() - began
    decoders = Decoders(space, drawn, group, stages.groups)
    ranks: dict[str, dict[int, list[float]]] = {m: {} for m in (PRIOR, OWN, EARLIER, LDA, RIDGE)}
    wrong = []
    for number in range(_FIRST_NEW, _FIRST_NEW + sizes.people):
        one = of(population.person(number, sizes.voxels), drawn.calibration, "visit")
        for count in sizes.trials:
            scores = decoders.encoding(one, count, with_group=True)
            ranks[PRIOR].setdefault(count, []).append(rank(scores))
            if count == n:
                orders = generator(seed, "wrong announcements", number)
                wrong.append(float(np.mean([rank(scores[:, orders.permutation(n_test)]) for _ in range(N_ORDERS)])))
            if count < FEWEST:
                continue  # from scratch there is nothing to decode with
            ranks[OWN].setdefault(count, []).append(rank(decoders.encoding(one, count, with_group=False)))
            for name, method in decoders.peers().items():
                ranks[name].setdefault(count, []).append(rank(method(one, count)))
        print(f"person {number - _FIRST_NEW + 1} of {sizes.people}", file=sys.stderr)
    strange = {
        "strangers": Population(seed, NOTHING_SHARED),
        "another template": Population(seed + 1, share),
    }
    costs: dict[str, list[float]] = {}
    for name, other in strange.items():
        for number in range(_FIRST_NEW, _FIRST_NEW + sizes.strangers):
            one = of(other.person(number, sizes.voxels), drawn.calibration, name)
            found = [
                rank(decoders.encoding(one, count, with_group=True))
                - rank(decoders.encoding(one, count, with_group=False))
                for count in GUARDED
                if count <= n
            ]
            costs.setdefault(name, []).append(float(np.mean(found)))
    return {"ranks": ranks, "wrong": wrong, "against own": costs, "learned_s": learned_s}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over people."""
    low, high = bootstrap_interval(np.array(values), np.random.default_rng(0), resamples=2000)
    return float(np.mean(values)), low, high


def paired(ranks: dict[str, dict[int, list[float]]], a: tuple[str, int], b: tuple[str, int]) -> list[float]:
    """Differences, person by person, of two methods with their trials."""
    return (np.array(ranks[a[0]][a[1]]) - np.array(ranks[b[0]][b[1]])).tolist()


def missed(name: str, share: Share, found: dict[str, Any]) -> list[str]:
    """Reasons why the goals are not reached."""
    ranks, reasons = found["ranks"], []
    if share.individual <= 0.3:
        if interval(paired(ranks, (PRIOR, 30), (EARLIER, 240)))[2] <= 0:
            reasons.append("the prior at 30 trials is behind the earlier calibration at 240")
        if np.mean(paired(ranks, (PRIOR, 120), (OWN, 240))) < -0.01:
            reasons.append("the prior at 120 trials is more than .01 behind from scratch at 240")
        curve = [np.mean(ranks[PRIOR][count]) for count in TRIALS]
        if np.min(np.diff(curve)) < 0:
            reasons.append("the mean falls with trials")
    for peer in (EARLIER, LDA, RIDGE):
        behind = [count for count in ranks[OWN] if np.mean(paired(ranks, (OWN, count), (peer, count))) <= 0]
        if behind:
            reasons.append(f"from scratch is not ahead of {peer} at {behind} trials")
    reasons += [f"{who} lose {-np.mean(d):.3f}" for who, d in found["against own"].items() if np.mean(d) < -0.01]
    _, low, high = interval(found["wrong"])
    if not low <= 0.5 <= high:
        reasons.append(f"wrong announcements are not at chance: {low:.3f} to {high:.3f}")
    return [f"{name}: {reason}" for reason in reasons]


def print_study(name: str, found: dict[str, Any]) -> None:
    def cell(values: list[float] | None) -> str:
        return "-" if values is None else "{:.3f} [{:.3f} {:.3f}]".format(*interval(values))

    ranks = found["ranks"]
    counts = list(ranks[PRIOR])
    print_table(
        f"Percentile rank, {name}, mean and 95 % interval over {len(ranks[PRIOR][counts[0]])} people; columns: trials",
        ["decoder", *map(str, counts)],
        [[method, *(cell(points.get(count)) for count in counts)] for method, points in ranks.items()],
    )
    print_table(
        "Prior of the others less, person by person",
        ["decoder", *map(str, counts)],
        [
            [m, *(cell(paired(ranks, (PRIOR, c), (m, c)) if c in ranks[m] else None) for c in counts)]
            for m in (OWN, EARLIER, LDA, RIDGE)
        ],
    )
    rows = [[f"{who}: with the prior less from scratch", cell(d)] for who, d in found["against own"].items()]
    print_table("Guards", ["case", "percentile rank"], [*rows, ["wrong announcements", cell(found["wrong"])]])
    print(f"The prior was learned in {found['learned_s']:.1f} s")


def time_update(seed: int, n_voxels: int = 15_000, n: int = 750, times: int = 7) -> dict[str, float]:
    """Median seconds for maps, noise and inversion at a chosen rank, at so many voxels and trials."""
    rng = generator(seed, "time")
    features = rng.standard_normal((n, 48))
    responses = rng.standard_normal((n, n_voxels), dtype=np.float32)
    places_mm = rng.uniform(-60, 60, (n_voxels, 3))
    told = statistics_of(features[:100], responses[:100], places_mm)
    group = PlacedPrior(group=learn_group_prior([told, told], np.full(48, 1 / 48)), places_mm=places_mm)
    scratch = MapPrior(covariance=np.eye(48) / 48)
    priors: dict[str, PriorOf] = {PRIOR: group, OWN: lambda _: scratch}
    seconds: dict[str, list[float]] = {name: [] for name in priors}
    for _ in range(1 + times):  # the first warms up
        for name, prior in priors.items():
            began = time.perf_counter()
            fit_encoder(responses, features, [prior], parts=[], shown=np.arange(n))
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(each[1:])) for name, each in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--people", type=int, default=12, help="new people")
    parser.add_argument("--others", type=int, default=20, help="earlier people")
    parser.add_argument("--share", choices=list(SHARES), help="one share only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="few people, voxels and trials: does it run?")
    arguments = parser.parse_args()
    sizes = Sizes(
        people=arguments.people,
        others=arguments.others,
        strangers=max(2, arguments.people // 3),
        pool=1500,
        test=80,
        voxels=1600,
        trials=TRIALS,
    )
    if arguments.quick:
        sizes = Sizes(people=2, others=3, strangers=1, pool=80, test=24, voxels=200, trials=(0, 10, 30))
    stages = load_stages(open_pack("tiny"), threads=1)
    drawn = Drawn(arguments.seed, sizes, stages)
    shares = {name: share for name, share in SHARES.items() if arguments.share in (None, name)}
    reasons, figures = [], {}
    for name, share in shares.items():
        found = study(arguments.seed, share, sizes, drawn, stages)
        print_study(name, found)
        figures[name] = found
        if not arguments.quick:
            reasons += missed(name, share, found)
    update_s = time_update(arguments.seed, *((500, 60, 1) if arguments.quick else ()))
    print("\nOne update without choices: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in update_s.items()))
    if arguments.json:
        write_json(arguments.json, {"seed": arguments.seed, "shares": figures, "update_s": update_s})
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
