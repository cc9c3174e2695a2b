"""One point of the learning curve: how well the trials of a visit so far are told apart, each by models without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration import identification, standing
from calibration.adapter_fit import Trials
from calibration.advice import Plan, advise, project
from calibration.encoding.encoder import PriorOf, fit_encoder
from calibration.encoding.maps import MapPrior
from calibration.likeness import Likeness
from calibration.ridge import centred
from calibration.scaling import Scaling
from calibration.supported import USUAL
from calibration.targets import components_of_products
from rtdecode.errors import CalibrationError
from rtdecode.packs.participant_bundle import CurvePoint

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


def curve_point(
    trials: Trials,
    likeness: Likeness,
    folds: Sequence[Ints],
    *,
    leave_out: Literal["trial", "run"],
    seed: int,
    plan: Plan,
) -> CurvePoint:
    """Measure the trials of a visit; quick enough to be done after every trial.

    Parameters
    ----------
    trials : Trials
        Those of an earlier visit are learned from, and not judged.
    likeness : Likeness
        Meets the pictures of the earlier visit.
    folds : sequence of ndarray of int64
        Trials of this visit that are held out together, from 0; at least two.
    leave_out : {"trial", "run"}
    seed : int
        Of shuffled labels and resamples.
    plan : Plan
    """
    n = len(trials.betas) - trials.earlier
    trials, folds = _of_this_visit(trials, folds, leave_out)
    for stimulus in trials.shown.tolist():
        likeness.meet(stimulus)
    place = likeness.places(trials.shown.tolist())
    by_fold = identification.make_folds(trials.betas, list(folds))
    alike = centred(likeness.products.sum(0))
    by_ridge = float(identification.percentile(by_fold, alike, place))
    if np.isnan(by_ridge):
        return CurvePoint(trials=n)
    runs = trials.together if leave_out == "run" else None
    null = identification.shuffled(by_fold, alike, place, runs, np.random.default_rng(seed))
    try:
        scaling = Scaling(trials.betas)
    except CalibrationError:  # nothing varies
        return CurvePoint(trials=n, percentile=0.5, interval=null.interval(0.5), p_value=null.p_value(by_ridge))
    described = _components(trials, likeness, scaling)
    return _standing(scaling(trials.betas), *described, trials.shown, folds, n, null, by_ridge, seed, plan)


def _of_this_visit(
    trials: Trials, folds: Sequence[Ints], leave_out: Literal["trial", "run"]
) -> tuple[Trials, list[Ints]]:
    """Leave out the earlier trials of what is shown today as well: a held-out picture must not have been met then."""
    first = trials.earlier
    stays = np.ones(len(trials.betas), np.bool_)
    if leave_out == "trial":
        stays[:first] = ~np.isin(trials.shown[:first], trials.shown[first:])
    own = int(stays[:first].sum())
    kept = replace(
        trials,
        betas=trials.betas[stays],
        run=trials.run[stays],
        shown=trials.shown[stays],
        together=trials.together[stays],
    )
    return kept, [own + fold for fold in folds]


def _components(trials: Trials, likeness: Likeness, scaling: Scaling) -> tuple[Float64, list[PriorOf]]:
    """Components of the picture of each trial, and what is known of maps of them beforehand."""
    if trials.prior is not None and trials.places_mm is not None:
        return trials.prior.pictures(likeness.tokens(trials.shown)), trials.prior.priors(
            trials.places_mm[scaling.voxels]
        )
    place = likeness.places(trials.shown.tolist())
    products = [one[np.ix_(place, place)] for one in likeness.products]
    components, share = components_of_products(products, most=USUAL)  # chosen for the decoder
    prior = MapPrior(covariance=np.diag(share))
    return components, [lambda _: prior]


def _standing(
    responses: Float32,
    components: Float64,
    priors: list[PriorOf],
    shown: Ints,
    parts: Sequence[Ints],
    n: int,
    null: identification.Null,
    by_ridge: float,
    seed: int,
    plan: Plan,
) -> CurvePoint:
    """Measure by encoding models that were learned without the fold that they are judged on."""
    can_grow = n == len(responses) and n >= standing.FEWEST_TO_PROJECT
    shares = standing.SHARES if can_grow else standing.SHARES[:1]
    held = [standing.held_out(responses, components, priors, parts, shown, share) for share in shares]
    rng = np.random.default_rng(seed)
    ranks = [one.ranks() for one in held]
    percentile = float(np.nanmean(ranks[0]))
    outlook = None
    if can_grow:
        learned = n - float(np.mean([len(part) for part in parts]))
        outlook = standing.outlook(ranks, [round(share * learned) for share in shares], rng)
        percentile = outlook.at(n)  # a fold's model has seen fewer trials than the decoder will
    in_order = np.concatenate([shown[part] for part in parts])
    top1, pairs = standing.top_one(held[0]), standing.mean_with_interval(held[0].pairs(), in_order, rng)
    whole = fit_encoder(responses, components, priors, parts=[], shown=shown).whole
    ceiling = standing.noise_ceiling(responses, shown, whole.voxels[: len(whole.noise.own)], whole.noise, rng)
    p_value = null.p_value(by_ridge)
    advice, why = advise(n, p_value, outlook, plan)
    return CurvePoint(
        trials=n,
        percentile=percentile,
        interval=null.interval(percentile),
        p_value=p_value,
        top1=None if top1 is None else top1[0],
        top1_chance=None if top1 is None else top1[2],
        top1_interval=() if top1 is None else top1[1],
        two_way=None if pairs is None else pairs[0],
        two_way_interval=() if pairs is None else pairs[1],
        ceiling=None if ceiling is None else ceiling[0],
        ceiling_interval=() if ceiling is None else ceiling[1],
        projected=project(n, percentile, outlook, plan),
        advice=advice,
        why=why,
    )
