"""How well a calibration stands after a trial: held-out figures of its encoding model, ceiling, projection and advice.

Each fold is decoded by an encoding model that was learned without it, with the noise model that mostly serves: quick
enough to be done anew after every trial. The same folds, learned from a half and a quarter of the other trials, tell
how the figure grows with trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from calibration.encoding.encoder import PriorOf, fit_encoder
from calibration.encoding.inverse import Noise
from rtdecode.statistics import bootstrap_interval, percentile_ranks, wilson_interval

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

SHARES = (1.0, 0.5, 0.25)
"""Of the trials outside a fold, from which its model is learned."""
FEWEST_TO_PROJECT = 32
FEWEST_REPEATED = 8
"""Pictures shown more than once from which a noise ceiling is told."""
RESAMPLES = 400
_FEWEST_LEARNED = 4
_ROOM = 1e-3  # of percentile ranks, which are turned into normal deviates
_LEAST_INTERCEPT = float(1 / np.square(norm.ppf(1 - _ROOM)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Scores of trials by models that were learned without their fold.

    Attributes
    ----------
    scores : tuple of ndarray of shape (f, f)
        Of each fold: log-likelihood of the picture of each of its trials (columns), given each trial (rows).
    shown : tuple of ndarray of shape (f,), int64
        Picture of each trial.
    """

    scores: tuple[Float64, ...]
    shown: tuple[Ints, ...]

    def ranks(self) -> Float64:
        """Percentile rank (n,) of each trial's picture among those of its fold; not a number where it is alone."""
        return np.concatenate([_among_others(one, shown) for one, shown in zip(self.scores, self.shown, strict=True)])

    def firsts(self) -> tuple[int, int, float]:
        """How many trials have their picture first, of how many, and which share would by chance."""
        hits, chances = 0, []
        for scores, shown in zip(self.scores, self.shown, strict=True):
            pictures, first, places = np.unique(shown, return_index=True, return_inverse=True)
            if len(pictures) < 2:
                continue
            among = scores[:, first]
            own = among[np.arange(len(shown)), places]
            hits += int(((among > own[:, None]).sum(1) + (among == own[:, None]).sum(1) == 1).sum())
            chances += [1 / len(pictures)] * len(shown)
        return hits, len(chances), float(np.mean(chances)) if chances else 0.0

    def pairs(self) -> Float64:
        """Share (n,) of a fold's other trials that each is matched with rightly: two trials, and their two pictures.

        Mitchell et al., Science 320, 2008.
        """
        found = []
        for scores, shown in zip(self.scores, self.shown, strict=True):
            own = np.diag(scores)
            lead = (own[:, None] + own) - (scores + scores.T)
            others = shown[:, None] != shown
            won = np.where(others, (lead > 0) + 0.5 * (lead == 0), 0.0).sum(1)
            count = others.sum(1)
            found.append(np.divide(won, count, out=np.full(len(shown), np.nan), where=count > 0))
        return np.concatenate(found)


def _among_others(scores: Float64, shown: Ints) -> Float64:
    pictures, first, places = np.unique(shown, return_index=True, return_inverse=True)
    if len(pictures) < 2:
        return np.full(len(shown), np.nan)
    return np.asarray(percentile_ranks(scores[:, first])[np.arange(len(shown)), places])


def held_out(
    responses: Float32,
    components: Float64,
    priors: Sequence[PriorOf],
    parts: Sequence[Ints],
    shown: Ints,
    share: float = 1.0,
) -> HeldOut:
    """Score every fold by a model of the other trials.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
        Standardised.
    components : ndarray of shape (n, k)
        Of the picture of each trial.
    priors : sequence of callable
        See `fit_encoder`.
    parts : sequence of ndarray of int64
        Trials of each fold.
    shown : ndarray of shape (n,), int64
    share : float
        Part of the other trials that are learned from, spread over all of them.
    """
    every = np.arange(len(responses))
    found = []
    for part in parts:
        rest = np.setdiff1d(every, part)
        kept = max(_FEWEST_LEARNED, round(share * len(rest)))
        if kept < len(rest):
            rest = rest[np.linspace(0, len(rest) - 1, kept).round().astype(np.int64)]
        model = fit_encoder(responses[rest], components[rest], priors, parts=[], shown=shown[rest]).whole
        found.append(model.scores(responses[part], components[part]))
    return HeldOut(scores=tuple(found), shown=tuple(shown[part] for part in parts))


def mean_with_interval(values: Float64, shown: Ints, rng: np.random.Generator) -> tuple[float, Interval] | None:
    """Mean over trials (n,) and its 95 % interval over pictures; None where no trial has a value."""
    known = np.isfinite(values)
    if not known.any():
        return None
    places = np.unique(shown[known], return_inverse=True)[1]
    by_picture = np.bincount(places, values[known]) / np.bincount(places)
    return float(values[known].mean()), bootstrap_interval(by_picture, rng, resamples=RESAMPLES)


def top_one(held: HeldOut) -> tuple[float, Interval, float] | None:
    """Share of trials whose picture is first, its 95 % interval, and the share by chance; None without trials."""
    hits, n, chance = held.firsts()
    return (hits / n, wilson_interval(hits, n), chance) if n else None


def noise_ceiling(
    responses: Float32, shown: Ints, voxels: Ints, noise: Noise, rng: np.random.Generator
) -> tuple[float, Interval] | None:
    """Percentile rank that a decoder would reach which knew each picture's response exactly.

    Responses of different trials share what their picture evokes and nothing else, so that products between repeats
    tell how far the responses to two pictures lie apart, without what noise adds. A trial is then told right with
    probability ``Phi(D / 2)``, D in deviations of the noise.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
    shown : ndarray of shape (n,), int64
    voxels : ndarray of shape (s,), int64
        Columns that the noise is of.
    noise : Noise
    rng : Generator

    Returns
    -------
    tuple, or None where fewer than `FEWEST_REPEATED` pictures were shown more than once
    """
    counts = np.bincount(shown)
    repeated = np.flatnonzero(counts > 1)
    if len(repeated) < FEWEST_REPEATED:
        return None
    trials = [np.flatnonzero(shown == picture) for picture in repeated]
    first, second = (
        np.stack([responses[np.ix_(own[half::2], voxels)].mean(0) for own in trials]).astype(np.float64)
        for half in (0, 1)
    )
    whitener = noise.whitener().astype(np.float64)
    products = (first / noise.own) @ second.T - (first @ whitener.T) @ (second @ whitener.T).T
    n = len(products)
    others = (products.sum(0) + products.sum(1) - 2 * np.diag(products)) / (2 * (n - 1))
    apart = np.diag(products) - others  # half of the mean squared distance to the others
    low, high = bootstrap_interval(apart, rng, resamples=RESAMPLES)
    told = [float(norm.cdf(np.sqrt(2 * max(value, 0.0)) / 2)) for value in (float(apart.mean()), low, high)]
    return told[0], (told[1], told[2])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """How the percentile rank grows with trials: ``1 / q^2 = intercept + slope / n``, q its normal deviate.

    So it is where maps are learned by ridge, whose correlation with the true ones is ``sqrt(n / (n + h))``. All arrays
    hold first what was fitted to all trials, then to trials that were drawn anew.

    Attributes
    ----------
    learned : int
        Trials learned from now.
    now : ndarray of shape (d,)
        Percentile rank with these.
    intercept, slope : ndarray of shape (d,)
        Slope 0: it does not grow.
    """

    learned: int
    now: Float64
    intercept: Float64
    slope: Float64

    def at(self, trials: int) -> float:
        """Return the percentile rank that is expected with so many trials."""
        return float(self._at(trials)[0])

    def gain(self, trials: int, more: int) -> tuple[float, Interval]:
        """Return what `more` trials instead of `trials` are expected to add, and its 80 % interval."""
        found = self._at(more) - self._at(trials)
        low, high = np.quantile(found[1:], (0.1, 0.9))
        return float(found[0]), (float(low), float(high))

    def _at(self, trials: int) -> Float64:
        grown = norm.cdf((self.intercept + self.slope / trials) ** -0.5)
        return np.asarray(
            np.clip(self.now + grown - norm.cdf((self.intercept + self.slope / self.learned) ** -0.5), 0, 1)
        )


def outlook(by_share: Sequence[Float64], learned: Sequence[int], rng: np.random.Generator, draws: int = 200) -> Outlook:
    """Fit how the figure grows; one that falls with trials, or is no better than chance, is taken not to grow.

    Parameters
    ----------
    by_share : sequence of ndarray of shape (n,)
        Percentile rank of each trial by models of fewer and fewer trials.
    learned : sequence of int
        From how many these were learned.
    rng : Generator
    draws : int
        How often trials are drawn anew, the same ones for every number of trials.
    """
    table = np.stack(list(by_share))
    table = table[:, np.isfinite(table).all(0)]
    n = table.shape[1]
    drawn = np.vstack([np.arange(n), rng.integers(n, size=(draws, n))])
    ranks = table[:, drawn].mean(2).T  # (draws + 1, shares)
    values = np.clip(ranks, 0.5 + _ROOM, 1 - _ROOM)
    inverse = 1 / np.square(norm.ppf(values))
    x = 1 / np.asarray(learned, np.float64)
    weight = np.square(values - 0.5) * np.asarray(learned)  # what is near chance says little
    weight /= weight.sum(1, keepdims=True)
    centre_x, centre_y = (weight * x).sum(1), (weight * inverse).sum(1)
    away = x - centre_x[:, None]
    slope = (weight * away * (inverse - centre_y[:, None])).sum(1) / (weight * np.square(away)).sum(1)
    intercept = centre_y - slope * centre_x
    flat = (slope <= 0) | (ranks[:, 0] <= 0.5 + _ROOM)
    steep = ~flat & (intercept <= _LEAST_INTERCEPT)  # a line through the present figure and the limit instead
    slope = np.where(steep, np.maximum(0, (inverse[:, 0] - _LEAST_INTERCEPT) / x[0]), np.where(flat, 0.0, slope))
    intercept = np.where(steep, _LEAST_INTERCEPT, np.where(flat, inverse[:, 0], intercept))
    return Outlook(learned=learned[0], now=ranks[:, 0], intercept=intercept, slope=slope)
