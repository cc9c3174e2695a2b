"""Encode, then invert: maps of every voxel, and a noise model and temperature that held-out trials choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.encoding.group_prior import PlacedPrior
from calibration.encoding.inverse import Inverse, Noise, chosen_voxels, invert, mixed, noise_models
from calibration.encoding.maps import MapPrior, fit_maps, map_lengths
from rtdecode.decode.score.content import content, parts_of, penalty

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

VOXEL_COUNTS = (125, 250, 500, 1000, 2000, 4000)
"""Sizes of the voxel set that are compared; the most responsive voxels are in all of them."""
RANKS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60)
"""Ranks of the shared noise that are compared; at most `_RANK_PER_TRIAL` of the trials."""
TEMPERATURES = np.logspace(-2.5, 0.25, 12)
BLURS = (0.0, 0.1, 1.0)
"""Variances of the random picture that errors which maps make together look like; see `Inverse.blurred`."""
_RANK_PER_TRIAL = 0.3
_DOUBT = 4.0
"""Differences of log-likelihood count this much less. Held-out trials share fits and noise, and a few that were hard to
tell would choose a single model else, where the average of many decodes better."""
_USUAL_RANK = 10
_USUAL = (0.1, 0.1, 1.0)
"""Blur and temperature that are expected before any trial, and the factor in which they are usually missed."""

Model = tuple[int, int, int]
"""Place of the prior, number of voxels, and rank of the noise."""
PriorOf = Callable[[Ints], MapPrior]
"""Prior of the maps of some voxels. A `PlacedPrior` is one that is aligned with the trials first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inverted:
    """An encoding model turned round.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Columns of the responses that it looks at.
    inverse : Inverse
        Of these.
    noise : Noise
        Of the first of these: the model that weighs most.
    """

    voxels: Ints
    inverse: Inverse
    noise: Noise

    def scores(self, responses: Float32, pictures: Float64) -> Float64:
        """Log-likelihood (n, m) of pictures (m, k), given responses (n, v) of all voxels."""
        return self.inverse.scores(responses[:, self.voxels], pictures)

    def distances(self, responses: Float32) -> Float64:
        """``y' S^-1 y`` of responses (n, v), a voxel: about 1 or more for responses of this kind."""
        own = responses[:, self.voxels[: len(self.noise.own)]]
        plain = np.square(own / np.sqrt(self.noise.own)).sum(1, dtype=np.float64)
        shared = np.square(own @ self.noise.whitener().T).sum(1, dtype=np.float64)
        return np.asarray((plain - shared) / own.shape[1])

    def contents(
        self,
        responses: Float32,
        pictures: Float64,
        group: Ints,
        n_groups: int,
        *,
        near: float,
        noise_range: tuple[float, float],
    ) -> Float64:
        """How much likelier responses (n, v) are with one of the pictures (m, k), or one like it, in nats.

        (1 + n_groups, n): of the whole pictures, then of the components of each group (k,): see
        `rtdecode.decode.score.encoding.EncodingModel.content_of`.
        """
        noise = np.sqrt(np.clip(self.distances(responses), *noise_range))
        evidence = self.inverse.evidence(responses[:, self.voxels]) / noise[:, None]
        information = self.inverse.information
        parts = [None, *parts_of(information, group, n_groups)]
        return np.stack([content(evidence, pictures, information, part, near=near) for part in parts])

    def noise_along(self, picture: Float64, n_voxels: int) -> tuple[Float32, Float32]:
        """How far responses of `n_voxels` voxels are those to a picture (k,), and the noise that goes with it.

        Returns
        -------
        weights : ndarray of shape (n_voxels,), float32
            Whose product with noise of this model has variance 1.
        pattern : ndarray of shape (n_voxels,), float32
            What to expect of noise for each unit of this product; the rest of the noise is independent of it.
        """
        own = self.voxels[: len(self.noise.own)]
        weights = np.zeros(n_voxels, np.float32)
        weights[self.voxels] = picture @ self.inverse.projection
        pattern = weights.copy()
        pattern[own] = self.noise.own * weights[own] + (weights[own] @ self.noise.shared.T) @ self.noise.shared
        length = max(float(weights @ pattern), 1e-30) ** 0.5
        return weights / np.float32(length), pattern / np.float32(length)

    def draw(self, n: int, n_voxels: int, rng: np.random.Generator) -> Float32:
        """Draw responses (n, n_voxels) to the average picture with the noise of this model."""
        own = self.voxels[: len(self.noise.own)]
        responses = np.zeros((n, n_voxels), np.float32)
        responses[:, self.voxels] = self.inverse.mean
        responses[:, own] += rng.standard_normal((n, len(own)), np.float32) * np.sqrt(self.noise.own)
        responses[:, own] += rng.standard_normal((n, len(self.noise.shared)), np.float32) @ self.noise.shared
        return responses


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """A fitted encoding model.

    Attributes
    ----------
    whole : Inverted
        Learned from all trials.
    held : tuple of Inverted
        Learned without some trials; sizes, rank and temperature by how models took the others.
    parts : tuple of ndarray of int64
        Trials that each of these did not see: the folds, then the further ones that were asked for.
    weights : dict of (int, int, int) to float
        How much each prior, by its place, number of voxels and rank of the noise weighs.
    """

    whole: Inverted
    held: tuple[Inverted, ...]
    parts: tuple[Ints, ...]
    weights: dict[Model, float]


def fit_encoder(
    responses: Float32,
    features: Float64,
    priors: Sequence[PriorOf],
    *,
    parts: Sequence[Ints],
    shown: Ints,
    further: Sequence[Ints] = (),
    rest: Float32 | None = None,
    foils: Float64 | None = None,
) -> Encoder:
    """Fit maps and noise; prior, number of voxels, rank, blur and temperature by what held-out trials showed.

    A held-out trial's picture is compared with the others of its fold only, and with foils: the maps have met those of
    the other folds, and would be recognised by that alone. Models are averaged with their likelihoods as weights: with
    few trials the best is not known, and the average of inverted models is itself one.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
        Scaled to noise of variance 1, or a little less. No trials at all will do where a prior says something.
    features : ndarray of shape (n, k)
        Components of the picture of each trial.
    priors : sequence of callable
        Of the maps of some voxels; the first says what these respond to the average picture. Held-out trials tell how
        much each is worth. A `PlacedPrior` is aligned with the trials that are learned from, never with held-out ones.
    parts : sequence of ndarray of int64
        Trials of each fold, at least two folds; with too few trials for that, none.
    shown : ndarray of shape (n,), int64
        Picture of each trial.
    further : sequence of ndarray of int64
        Sets of trials that a model is wanted without, beside the folds.
    rest : ndarray of shape (m, v), float32, or None
        Responses where nothing was shown, scaled as the others, of mean 0.
    foils : ndarray of shape (m, k), or None
        Components of pictures that nobody was shown.
    """
    every = np.arange(len(responses))
    silent = np.zeros((0, responses.shape[1]), np.float32) if rest is None else rest
    fewest = len(responses) - max((len(part) for part in (*parts, *further)), default=0) + len(silent)
    models = _models(len(priors), responses.shape[1], fewest)
    if not parts:
        models = _usual(models)
    likelihood = np.zeros((len(models), len(_levels()), len(responses)))
    without = []
    for part in parts:
        left = np.setdiff1d(every, part)
        fitted = _Fitted(responses[left], features[left], priors, models, silent)
        pictures, places = np.unique(shown[part], return_inverse=True)
        components = np.stack([features[part][places == i][0] for i in range(len(pictures))])
        if foils is not None:
            components = np.concatenate([components, foils])
        for i, inverse in enumerate(fitted.inverses):
            of_model = responses[np.ix_(part, fitted.voxels[: len(inverse.mean)])]
            likelihood[i][:, part] = _told(inverse, of_model, components, places)
        without.append(fitted)
    for part in further:
        left = np.setdiff1d(every, part)
        without.append(_Fitted(responses[left], features[left], priors, models, silent))
    apart = (*parts, *further)
    held = [
        fitted.mixed(*_choose(likelihood[:, :, np.setdiff1d(every, part)]))
        for part, fitted in zip(apart, without, strict=True)
    ]
    weights, levels = _choose(likelihood)
    return Encoder(
        whole=_Fitted(responses, features, priors, models, silent).mixed(weights, levels),
        held=tuple(held),
        parts=apart,
        weights=dict(zip(models, weights.tolist(), strict=True)),
    )


def _models(n_priors: int, n_voxels: int, n: int) -> list[Model]:
    """Priors, numbers of voxels and ranks to compare with so many voxels, and trials and stretches of rest."""
    sizes = sorted({min(size, n_voxels) for size in VOXEL_COUNTS})
    most = _RANK_PER_TRIAL * n
    return [
        (place, size, rank) for place in range(n_priors) for size in sizes for rank in RANKS if rank <= min(most, size)
    ]


def _usual(models: list[Model]) -> list[Model]:
    """Choose for each prior where no trial can be held out: all voxels, and a rank that mostly serves."""
    best = max((size, rank) for _, size, rank in models if rank <= _USUAL_RANK)
    return [model for model in models if model[1:] == best]


def log_shares(scores: Float64, shown: Ints, temperatures: Float64) -> Float32:
    """Log-likelihood (t, n) of the pictures shown (n,), given scores (n, m) of all, at each temperature (t,)."""
    away = (scores - scores[np.arange(len(shown)), shown][:, None]).astype(np.float32)
    most = away.max(1)
    factors = temperatures.astype(np.float32)[:, None]
    others = np.exp(factors[:, :, None] * (away - most[:, None])).sum(2)
    return np.asarray(-factors * most - np.log(others))


def _told(inverse: Inverse, responses: Float32, pictures: Float64, shown: Ints) -> Float32:
    """Log-likelihood (levels, n) of the pictures shown, among all (m, k), at each blur and temperature."""
    evidence = inverse.evidence(responses)
    found = []
    for blur in BLURS:
        factor = np.linalg.inv(np.eye(len(inverse.information)) + blur * inverse.information)
        scores = evidence @ (factor.T @ pictures.T) - penalty(factor @ inverse.information, pictures)
        found.append(log_shares(scores, shown, TEMPERATURES))
    return np.concatenate(found)


class _Fitted:
    """Every model that is compared, fitted to some trials."""

    def __init__(
        self, responses: Float32, features: Float64, priors: Sequence[PriorOf], models: list[Model], rest: Float32
    ) -> None:
        every = np.arange(responses.shape[1])
        aligned = [one.aligned(features, responses) if isinstance(one, PlacedPrior) else one for one in priors]
        known = [one(every) for one in aligned]
        sizes = [size for _, size, _ in models]
        self.voxels = every
        if min(sizes) < len(every):
            lengths = np.sum([map_lengths(features, responses, prior, rest) for prior in known], axis=0)
            self.voxels = np.argsort(-lengths, kind="stable")[: max(sizes)]
        self.noises: list[Noise] = []
        self.inverses: list[Inverse] = []
        constant = None
        for place, prior in enumerate(known):
            # what is common to voxels is learned from these alone
            silent = rest[:, self.voxels]
            maps = fit_maps(features, responses[:, self.voxels], prior.of(self.voxels), silent)
            constant = maps.constant if constant is None else constant
            maps = replace(maps, constant=constant)
            for size in dict.fromkeys(size for of, size, _ in models if of == place):
                of_size = chosen_voxels(maps, slice(size))
                ranks = [rank for of, s, rank in models if (of, s) == (place, size)]
                noises = noise_models(of_size, ranks, silent[:, :size])
                self.noises += noises
                self.inverses += [invert(of_size, noise) for noise in noises]

    def mixed(self, weights: Float64, levels: Ints) -> Inverted:
        chosen = [
            inverse.blurred(_levels()[level][0]).tempered(_levels()[level][1])
            for inverse, level in zip(self.inverses, levels, strict=True)
        ]
        return Inverted(voxels=self.voxels, inverse=mixed(chosen, weights), noise=self.noises[int(weights.argmax())])


def _choose(likelihood: Float64) -> tuple[Float64, Ints]:
    """Weight of each model and its best level, given log-likelihoods (models, levels, n)."""
    total = likelihood.sum(2) + _expected()
    best = total.max(1)
    weights = np.exp((best - best.max()) / _DOUBT)
    return weights / weights.sum(), total.argmax(1)


def _levels() -> list[tuple[float, float]]:
    """Pairs of blur and temperature that are compared."""
    return [(blur, float(temperature)) for blur in BLURS for temperature in TEMPERATURES]


def _expected() -> Float64:
    """Logarithm (levels,), up to a constant, of how likely each level is beforehand."""
    blur, temperature, factor = _USUAL
    away = [(np.log10((b + 0.01) / (blur + 0.01)), np.log10(t / temperature)) for b, t in _levels()]
    return np.asarray(-0.5 * np.square(np.array(away) / factor).sum(1))
