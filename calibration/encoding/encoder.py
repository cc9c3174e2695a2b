"""Encode, then invert: maps of every voxel, and a noise model and temperature that held-out trials choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from calibration.encoding.inverse import Inverse, Noise, first_voxels, invert, mixed, noise_models
from calibration.encoding.maps import MapPrior, fit_maps, response_variance

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

VOXEL_COUNTS = (125, 250, 500, 1000, 2000, 4000)
"""Sizes of the voxel set that are compared; the most responsive voxels are in all of them."""
RANKS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60)
"""Ranks of the shared noise that are compared; at most `_RANK_PER_TRIAL` of the trials."""
TEMPERATURES = np.logspace(-2.5, 0.25, 23)
_RANK_PER_TRIAL = 0.3

PriorOf = Callable[[Ints], MapPrior]
"""Prior of the maps of some voxels."""


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
    weights : dict of (int, int) to float
        How much each number of voxels and rank of the noise weighs.
    """

    whole: Inverted
    held: tuple[Inverted, ...]
    parts: tuple[Ints, ...]
    weights: dict[tuple[int, int], float]


def fit_encoder(
    responses: Float32,
    features: Float64,
    prior: PriorOf,
    *,
    parts: Sequence[Ints],
    shown: Ints,
    further: Sequence[Ints] = (),
) -> Encoder:
    """Fit maps and noise; number of voxels, rank and temperature by the likelihood of what held-out trials showed.

    A held-out trial's picture is compared with the others of its fold only: the maps have met those of the other folds,
    and would be recognised by that alone. Models are averaged with their likelihoods as weights: with few trials the
    best is not known, and the average of inverted models is itself one.

    Parameters
    ----------
    responses : ndarray of shape (n, v), float32
        Standardised over trials.
    features : ndarray of shape (n, k)
        Components of the picture of each trial.
    prior : callable
        Prior of the maps of some voxels.
    parts : sequence of ndarray of int64
        Trials of each fold, at least two folds.
    shown : ndarray of shape (n,), int64
        Picture of each trial.
    further : sequence of ndarray of int64
        Sets of trials that a model is wanted without, beside the folds.
    """
    every = np.arange(len(responses))
    fewest = len(responses) - max(len(part) for part in (*parts, *further))
    models = _models(responses.shape[1], fewest)
    likelihood = np.empty((len(models), len(TEMPERATURES), len(responses)))
    without = []
    for part in parts:
        rest = np.setdiff1d(every, part)
        fitted = _Fitted(responses[rest], features[rest], prior, models)
        pictures, places = np.unique(shown[part], return_inverse=True)
        components = np.stack([features[part][places == i][0] for i in range(len(pictures))])
        for i, inverse in enumerate(fitted.inverses):
            of_model = responses[np.ix_(part, fitted.voxels[: len(inverse.mean)])]
            tried = log_softmax(TEMPERATURES[:, None, None] * inverse.scores(of_model, components), axis=-1)
            likelihood[i][:, part] = tried[:, np.arange(len(part)), places]
        without.append(fitted)
    for part in further:
        rest = np.setdiff1d(every, part)
        without.append(_Fitted(responses[rest], features[rest], prior, models))
    apart = (*parts, *further)
    held = [
        fitted.mixed(*_choose(likelihood[:, :, np.setdiff1d(every, part)]))
        for part, fitted in zip(apart, without, strict=True)
    ]
    weights, temperatures = _choose(likelihood)
    return Encoder(
        whole=_Fitted(responses, features, prior, models).mixed(weights, temperatures),
        held=tuple(held),
        parts=apart,
        weights=dict(zip(models, weights.tolist(), strict=True)),
    )


def _models(n_voxels: int, n: int) -> list[tuple[int, int]]:
    """Numbers of voxels and ranks to compare with so many voxels and trials."""
    sizes = sorted({min(size, n_voxels) for size in VOXEL_COUNTS})
    return [(size, rank) for size in sizes for rank in RANKS if rank <= min(_RANK_PER_TRIAL * n, size)]


class _Fitted:
    """Every model that is compared, fitted to some trials."""

    def __init__(self, responses: Float32, features: Float64, prior: PriorOf, models: list[tuple[int, int]]) -> None:
        n_voxels = responses.shape[1]
        variance = response_variance(features, responses, prior(np.arange(n_voxels)))
        self.voxels = np.argsort(-variance, kind="stable")[: max(size for size, _ in models)]
        maps = fit_maps(features, responses[:, self.voxels], prior(self.voxels))
        self.noises: list[Noise] = []
        self.inverses: list[Inverse] = []
        for size in dict.fromkeys(size for size, _ in models):
            of_size = first_voxels(maps, size)
            noises = noise_models(of_size.residuals, [rank for s, rank in models if s == size])
            self.noises += noises
            self.inverses += [invert(of_size, noise) for noise in noises]

    def mixed(self, weights: Float64, temperatures: Float64) -> Inverted:
        return Inverted(
            voxels=self.voxels,
            inverse=mixed(self.inverses, weights * temperatures),
            noise=self.noises[int(weights.argmax())],
        )


def _choose(likelihood: Float64) -> tuple[Float64, Float64]:
    """Weight of each model and its best temperature, given log-likelihoods (models, temperatures, n)."""
    total = likelihood.sum(2)
    best = total.max(1)
    weights = np.exp(best - best.max())
    return weights / weights.sum(), TEMPERATURES[total.argmax(1)]
