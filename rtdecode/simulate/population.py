"""People whose brains are alike: tuning is tied to places, shared between people to a stated part, and shifted in each.

A population is one template: smooth random functions of place, that can be evaluated anywhere, say what a place of the
cortex answers to. A person is the template seen through a shift and a warp, mixed with functions of the person's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, softmax

from rtdecode.simulate.features import (
    EARLY,
    FRONT,
    GRID,
    MIDDLE,
    N_CHANNELS,
    N_COMPONENTS,
    N_FEATURES,
    feature_covariance,
)
from rtdecode.simulate.fields import make_waves
from rtdecode.simulate.head import BRAIN_AXES_MM
from rtdecode.simulate.seeds import generator
from rtdecode.simulate.trial_noise import RANK, TrialNoise, make_trial_noise

SCALES_MM: Final = {6.0: 0.4, 10.0: 0.35, 18.0: 0.25}
"""Length scales of what depends on place, and their shares."""
SHIFT_MM: Final = 3.0
WARP_MM: Final = 2.5
"""Standard deviations per axis between people: of the shift of the whole, and of the warp."""
RESPONDING: Final = 0.55
"""Fraction of the voxels that respond to pictures."""
SIGNAL: Final = 0.3
"""Median over responding voxels of the deviation over pictures, in deviations of the noise of a trial."""
LAPSES: Final = 0.05
LAPSED_RESPONSE: Final = 0.3
"""Fraction of trials on which a person does not look, and what is then left of the mean response."""
_WARP_SCALE_MM: Final = 22.0
_NOISE_SCALE_MM: Final = 14.0
_PATCHES, _PATCH_MM, _PATCH_JITTER_MM, _PATCH_PULL, _PATCH_AREA = 14, 6.0, 4.0, 2.0, 3.0
_PERSON_GAIN_SD, _VOXEL_GAIN_SD = 0.2, 0.45
_MEAN_RESPONSE, _MEAN_SPREAD = 1.0, 0.5
_AREA_SLOPE, _AREA_FIELDS, _MIDDLE_Y_MM, _DEPTH_MM = 2.0, 0.8, -62.0, 14.0
_RECEPTIVE_CELLS, _RECEPTIVE_SPREAD = 0.7, 0.3
_CORTEX_BOX_MM, _CORTEX_RADII = ((-64.0, 64.0), (-84.0, -38.0), (-56.0, 42.0)), (0.78, 0.96)
_VOXEL_MM, _FOLD_MM = (3.4, 3.4, 3.8), 4.0
_N_TUNED: Final = N_CHANNELS + (MIDDLE.stop - MIDDLE.start) + (FRONT.stop - FRONT.start)
_AREAS, _RECEPTIVE, _RESPONDS, _MEAN = (
    slice(_N_TUNED, _N_TUNED + 3),
    slice(_N_TUNED + 3, _N_TUNED + 6),
    _N_TUNED + 6,
    _N_TUNED + 7,
)
_N_FIELDS: Final = _N_TUNED + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How the variance of what depends on place divides; the rest of it is common to all people.

    Attributes
    ----------
    individual : float
        Part of each person alone, as smooth as the common part.
    voxel : float
        Part of each voxel alone.
    """

    individual: float
    voxel: float

    @property
    def common(self) -> float:
        """Part that all people have in common."""
        return 1 - self.individual - self.voxel


MOSTLY_SHARED: Final = Share(individual=0.1, voxel=0.05)
LESS_SHARED: Final = Share(individual=0.4, voxel=0.1)
"""The two shares that benches report. They were fixed before any decoder was tuned."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Voxels:
    """What the voxels of a person answer to.

    Attributes
    ----------
    places_mm : array of shape (v, 3)
    tuning : array of shape (N_FEATURES, v)
        Features to response; deviation 1 over pictures in general.
    responds : array of shape (v,)
        How willingly each responds: smooth, standard normal over all places.
    gain : array of shape (v,)
        Lognormal around the person's own.
    mean : array of shape (v,)
        Response to the average picture; 1 is as much as the deviation over pictures.
    """

    places_mm: NDArray[np.float64]
    tuning: NDArray[np.float64]
    responds: NDArray[np.float64]
    gain: NDArray[np.float64]
    mean: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> Voxels:
        """Return some of them."""
        return Voxels(
            places_mm=self.places_mm[index],
            tuning=self.tuning[:, index],
            responds=self.responds[index],
            gain=self.gain[index],
            mean=self.mean[index],
        )


class Population:
    """People who share a template.

    Parameters
    ----------
    seed : int
        Fixes the template; another seed is another template, with nothing in common.
    share : Share
        How much of it people share.
    """

    def __init__(self, seed: int = 0, share: Share = LESS_SHARED) -> None:
        if not (share.individual >= 0 and share.voxel >= 0 and share.common >= 0):
            raise ValueError(f"expected parts of 0 or more that leave 0 or more in common, got {share}")
        self.seed = seed
        self.share = share
        rng = generator(seed, "template")
        self._waves = make_waves(rng, SCALES_MM)
        self._warp = make_waves(rng, {_WARP_SCALE_MM: 1.0})
        self._broad = make_waves(rng, {_NOISE_SCALE_MM: 1.0})
        self._template = rng.standard_normal((self._waves.size, _N_FIELDS))
        directions = rng.standard_normal((_PATCHES, 3)) * [1.0, 0.5, 0.7] - [0.0, 1.0, 0.0]
        self._patches = 0.87 * np.array(BRAIN_AXES_MM) * directions / np.linalg.norm(directions, axis=1)[:, None]
        self._pulls = _PATCH_PULL * rng.standard_normal((_PATCHES, N_COMPONENTS))

    def voxels(self, person: int, places_mm: NDArray[np.float64]) -> Voxels:
        """Return what a person's voxels answer to.

        Parameters
        ----------
        person : int
            Seed of the person.
        places_mm : array of shape (v, 3)
            In the person's own anatomy, RAS mm, which is all that a lab would know. The part of each voxel alone is
            drawn for these places in this order; all else is the same wherever the person is looked at.
        """
        rng = generator(self.seed, "person", person)
        shift = SHIFT_MM * rng.standard_normal(3)
        warp = WARP_MM * rng.standard_normal((self._warp.size, 3))
        own = rng.standard_normal(self._template.shape)
        patches = self._patches + _PATCH_JITTER_MM * rng.standard_normal(self._patches.shape)
        person_gain = np.exp(_PERSON_GAIN_SD * rng.standard_normal())
        there = places_mm + shift + self._warp(places_mm) @ warp
        fields = self._waves(there) @ (
            np.sqrt(self.share.common) * self._template + np.sqrt(self.share.individual) * own
        )
        fields += np.sqrt(self.share.voxel) * rng.standard_normal(fields.shape)
        nearness = np.exp(-((there[:, None] - patches) ** 2).sum(axis=2) / (2 * _PATCH_MM**2))
        return Voxels(
            places_mm=places_mm,
            tuning=_tuning(fields, nearness, nearness @ self._pulls, there[:, 1]),
            responds=fields[:, _RESPONDS],
            gain=person_gain * np.exp(_VOXEL_GAIN_SD * rng.standard_normal(len(places_mm))),
            mean=_MEAN_RESPONSE * (1 + _MEAN_SPREAD * fields[:, _MEAN]),
        )

    def noise(self, person: int, places_mm: NDArray[np.float64], tuned: NDArray[np.float64]) -> TrialNoise:
        """Return the trial noise of a person's voxels, of variance 1.

        Parameters
        ----------
        person : int
        places_mm : array of shape (v, 3)
            Of the voxels.
        tuned : array of shape (RANK, v)
            Directions, in units of the noise, that carry a part of it: see `leading_directions`.
        """
        rng = generator(self.seed, "noise of a person", person)
        fields = self._broad(places_mm) @ rng.standard_normal((self._broad.size, 1 + RANK))
        return make_trial_noise(places_mm, fields[:, 0], fields[:, 1:].T, tuned)

    def person(self, number: int, n_voxels: int = 1600) -> Person:
        """Return a person as the estimated responses of single trials show them; no volumes are made.

        Parameters
        ----------
        number : int
            Seed of the person.
        n_voxels : int
            Voxels of posterior cortex, of which `RESPONDING` respond.

        Raises
        ------
        ValueError
            If posterior cortex has not so many.
        """
        voxels = self.voxels(number, posterior_cortex(generator(self.seed, "voxels of a person", number), n_voxels))
        amplitude = SIGNAL * voxels.gain * (voxels.responds > np.quantile(voxels.responds, 1 - RESPONDING))
        weights = amplitude * voxels.tuning
        return Person(
            number=number,
            places_mm=voxels.places_mm,
            weights=weights.astype(np.float32),
            mean=(amplitude * voxels.mean).astype(np.float32),
            noise=self.noise(number, voxels.places_mm, leading_directions(weights)),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Person:
    """A member of a population, in units of the usual deviation of a voxel's noise.

    Attributes
    ----------
    number : int
    places_mm : array of shape (v, 3)
        Of the voxels in the person's own anatomy, RAS mm: the common space as a lab would know it, which is not the
        template's.
    weights : array of shape (N_FEATURES, v), float32
        Features of a picture to response around the mean.
    mean : array of shape (v,), float32
        Response to the average picture.
    noise : TrialNoise
    """

    number: int
    places_mm: NDArray[np.float64]
    weights: NDArray[np.float32]
    mean: NDArray[np.float32]
    noise: TrialNoise

    def responses(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return what pictures evoke without any noise: (n, v). `features` are `picture_features`."""
        return np.asarray(self.mean + features.astype(np.float32) @ self.weights)

    def betas(self, features: NDArray[np.floating[Any]], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return responses of single trials (n, v): lapses and noise included."""
        evoked = self.responses(features)
        lapsed = rng.random(len(evoked)) < LAPSES
        evoked[lapsed] = LAPSED_RESPONSE * self.mean
        return np.asarray(evoked + self.noise.draw(rng, np.ones(len(evoked), bool)))

    def rest(self, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return what is estimated where nothing was shown: (n, v)."""
        return self.noise.draw(rng, np.zeros(n, bool))


def leading_directions(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leading directions (RANK, v) in which responses to pictures differ, each by as much as it does.

    `weights` (N_FEATURES, v) are those of features to responses.
    """
    values, vectors = np.linalg.eigh(feature_covariance())
    root = (vectors * np.sqrt(np.clip(values, 0, None))).T @ weights
    _, axes = np.linalg.eigh(root @ root.T)
    return np.asarray(axes[:, : -RANK - 1 : -1].T @ root)


def posterior_cortex(rng: np.random.Generator, n_voxels: int) -> NDArray[np.float64]:
    """Draw the voxels of a slab of posterior cortex with folds of its own, in the space of the heads, (n_voxels, 3) mm.

    Raises
    ------
    ValueError
        If there are not so many.
    """
    axes = [np.arange(low, high, step) for (low, high), step in zip(_CORTEX_BOX_MM, _VOXEL_MM, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3) + rng.uniform(-1.5, 1.5, 3)
    radius = np.sqrt(((grid / BRAIN_AXES_MM) ** 2).sum(axis=1))
    inside = grid[(radius > _CORTEX_RADII[0]) & (radius < _CORTEX_RADII[1]) & (grid[:, 1] < _CORTEX_BOX_MM[1][1])]
    if n_voxels > len(inside):
        raise ValueError(f"expected at most {len(inside)} voxels of posterior cortex, got {n_voxels}")
    folds = make_waves(rng, {_FOLD_MM: 1.0})
    depth = folds(inside) @ rng.standard_normal(folds.size)
    return np.asarray(inside[np.sort(np.argsort(depth)[:n_voxels])])


def _tuning(
    fields: NDArray[np.float64], nearness: NDArray[np.float64], pulled: NDArray[np.float64], y_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (N_FEATURES, v) of deviation 1 over pictures, from the fields of the voxels (v, _N_FIELDS).

    The further forward, the later the stage; patches belong to the front and prefer what they are pulled to.
    """
    forward = (y_mm - _MIDDLE_Y_MM) / _DEPTH_MM
    logits = _AREA_SLOPE * np.stack([-forward, 0.5 - np.abs(forward), forward], axis=1)
    logits += _AREA_FIELDS * fields[:, _AREAS]
    logits[:, 2] += _PATCH_AREA * nearness.max(axis=1)
    stages = softmax(logits, axis=1)
    channels, middle, front = np.split(fields[:, :_N_TUNED], [N_CHANNELS, N_CHANNELS + N_COMPONENTS], axis=1)
    front = np.hstack([front[:, :N_COMPONENTS] + pulled, front[:, N_COMPONENTS:]])
    early = channels[:, :, None] * _receptive_fields(fields[:, _RECEPTIVE])[:, None, :]
    covariance = feature_covariance()
    weights = np.zeros((N_FEATURES, len(fields)))
    for stage, (columns, part) in enumerate(
        ((EARLY, early.reshape(len(fields), -1)), (MIDDLE, middle), (FRONT, front))
    ):
        weights[columns] = (np.sqrt(stages[:, stage]) / _deviation(part.T, covariance[columns, columns])) * part.T
    return np.asarray(weights / _deviation(weights, covariance))


def _deviation(weights: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("fv,fv->v", weights, covariance @ weights)))


def _receptive_fields(fields: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (v, GRID * GRID) of the cells of the picture, rows first, for fields of x, y and size."""
    x, y = (GRID * ndtr(fields[:, i]) - 0.5 for i in (0, 1))
    size = _RECEPTIVE_CELLS * np.exp(_RECEPTIVE_SPREAD * fields[:, 2])
    cell = np.arange(GRID)
    across, down = (np.exp(-((cell - at[:, None]) ** 2) / (2 * size[:, None] ** 2)) for at in (x, y))
    return np.asarray((down[:, :, None] * across[:, None, :]).reshape(len(fields), -1))
