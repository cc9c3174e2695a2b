"""What earlier people teach of a new one: where in the brain which features of pictures are answered to.

Maps of earlier people, each with the others' for a prior, are averaged over places of a common space, in which brains
are aligned by what they answer to. What is left between people is a covariance of the features and a map of how
strongly voxels respond at all. No response of anyone is kept. The recipe is empirical Bayes by
expectation-maximisation (Dempster, Laird & Rubin, JRSS B 39, 1977), with the mean made a smooth function of place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from calibration.encoding.alignment import Displacement, MeanMaps, mean_maps, read_cells
from calibration.encoding.maps import MapPrior
from rtdecode.errors import CalibrationError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CELL_MM = 3.0
SMOOTHING_MM = 1.6
"""Standard deviation of the kernel over which people's maps are averaged."""
ROUNDS = 8
_ALIGNED_FROM = 3
"""Round from which people's places are brought upon each other by what they answer to."""
_NOISE = 1.3
"""Variance of the noise, in the units of responses: these are scaled by rest, and pictures bring noise of their own."""
_FIRST = 0.01
_RARE = 0.05
"""Weight of the prior mean 0 where few voxels were seen, as a part of the median number of voxels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PersonStatistics:
    """All that is kept of a person.

    Attributes
    ----------
    gram : ndarray of shape (k + 1, k + 1)
        Products of the features of all trials, the constant first.
    products : ndarray of shape (k + 1, v), float32
        Of the features with the responses, which are in units of each voxel's noise.
    places_mm : ndarray of shape (v, 3)
        Of the voxels in the common space.
    """

    gram: Float64
    products: Float32
    places_mm: Float64


def statistics_of(components: Float64, responses: Float32, places_mm: Float64) -> PersonStatistics:
    """Sum up the trials of a person: components (n, k) of their pictures and responses (n, v)."""
    features = np.column_stack([np.ones(len(components)), components])
    return PersonStatistics(
        gram=features.T @ features, products=features.T.astype(np.float32) @ responses, places_mm=places_mm
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupPrior:
    """What is known of the maps of anyone, by place.

    Attributes
    ----------
    origin_mm : ndarray of shape (3,)
        Centre of the first cell.
    cell_mm : float
        Edge of a cell.
    mean : ndarray of shape (k + 1, x, y, z), float32
        Expected weights of a voxel there, the constant first.
    constant_variance : float
        Of people's responses to the average picture around the expected one.
    spectrum : ndarray of shape (k,)
        How weights may differ from the expected ones. What earlier people differed by would be the obvious choice, but
        holds the trial noise of each, which prefers the directions of the tuning.
    covariance : ndarray of shape (k + 1, k + 1)
        What earlier people did differ by, in the usual voxel.
    people : int
        From whom it was learned.
    """

    origin_mm: Float64
    cell_mm: float
    mean: Float32
    constant_variance: float
    spectrum: Float64
    covariance: Float64
    people: int

    def at(self, places_mm: Float64) -> MapPrior:
        """Prior of voxels at places (v, 3) of the common space; nothing is expected outside the cells."""
        mean = read_cells(self._by_cell, (places_mm - self.origin_mm) / self.cell_mm).astype(np.float32)
        return MapPrior(
            covariance=np.diag(self.spectrum),
            mean=mean[1:],
            constant=mean[0],
            constant_variance=self.constant_variance,
        )

    @cached_property
    def _by_cell(self) -> Float32:
        return _cells_first(self.mean)

    @cached_property
    def leading(self) -> MeanMaps:
        """What places are aligned by."""
        return mean_maps(self.mean, self.origin_mm, self.cell_mm)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPrior:
    """What is known of the maps of a person's voxels: a prior of some voxels, given their numbers.

    Attributes
    ----------
    group : GroupPrior
    places_mm : ndarray of shape (v, 3)
        Of the voxels in the common space.
    """

    group: GroupPrior
    places_mm: Float64

    def __call__(self, voxels: NDArray[np.int64]) -> MapPrior:
        """Prior of some voxels."""
        return self.group.at(self.places_mm[voxels])

    def aligned(self, features: Float64, responses: Float32) -> PlacedPrior:
        """Return it with the places moved to where these trials, features (n, k) and responses (n, v), put them."""
        if not len(features):
            return self
        told = statistics_of(features, responses, self.places_mm)
        moved = self._displacement.undone()
        moved.fit(self.group.leading, told.gram, told.products, self.group.covariance, _NOISE)
        return PlacedPrior(group=self.group, places_mm=moved.places())

    @cached_property
    def _displacement(self) -> Displacement:
        return Displacement(self.places_mm)


def learn_group_prior(people: Sequence[PersonStatistics], spectrum: Float64) -> GroupPrior:
    """Learn from earlier people, whose trials may have shown any pictures.

    Parameters
    ----------
    people : sequence of PersonStatistics
        At least two.
    spectrum : ndarray of shape (k,)
        Of the components, see `PictureSpace`.

    Raises
    ------
    CalibrationError
        Fewer than two people.
    """
    if len(people) < 2:
        raise CalibrationError(f"expected two or more people to learn what they share, got {len(people)}")
    size = len(people[0].gram)
    covariance = _FIRST * np.eye(size)
    weights = [np.zeros_like(person.products) for person in people]
    scale = [np.ones(len(person.places_mm)) for person in people]
    moved = [Displacement(person.places_mm) for person in people]
    for number in range(ROUNDS):
        grid = _Grid([one.places() for one in moved])
        sums = [grid.splat(one, place) for place, one in enumerate(weights)]
        every = np.sum(sums, axis=0)
        away, spread, strength = np.zeros((size, size)), np.zeros((size, size)), []
        precision = np.asarray(np.linalg.inv(covariance), np.float64)
        for place, person in enumerate(people):
            mean = grid.read(every - sums[place], grid.count - grid.counts[place], place)
            found = _posterior(person, mean, covariance, scale[place])
            weights[place] = found.weights
            off = (found.weights - mean).astype(np.float64)
            away += (off / scale[place]) @ off.T / off.shape[1]
            spread += found.spread(1 / scale[place])
            own = (off * (precision @ off)).sum(0) + found.traces(precision)
            strength.append(own / size)
            sums[place] = grid.splat(found.weights, place)
        covariance = (away + spread) / len(people)
        maps = [grid.splat(one[None].astype(np.float32), place)[0] for place, one in enumerate(strength)]
        usual = float(np.mean(np.concatenate(strength)))
        field = (np.sum(maps, axis=0) + _RARE * grid.typical * usual) / (grid.count + _RARE * grid.typical)
        scale = [np.maximum(grid.at(field, place), 1e-3) for place in range(len(people))]
        if _ALIGNED_FROM <= number < ROUNDS - 1:
            _align(people, moved, grid, sums, [covariance * one.mean() for one in scale])
    return GroupPrior(
        origin_mm=grid.origin_mm,
        cell_mm=CELL_MM,
        mean=grid.mean(np.sum(sums, axis=0), grid.count),
        constant_variance=float(covariance[0, 0]),
        spectrum=spectrum,
        covariance=covariance * usual,
        people=len(people),
    )


def _align(
    people: Sequence[PersonStatistics],
    moved: Sequence[Displacement],
    grid: _Grid,
    sums: Sequence[Float32],
    covariances: Sequence[Float64],
) -> None:
    """Move each person's places to where the others' maps are most like the person's; none as all, on average."""
    every = np.sum(sums, axis=0)
    for place, (person, own) in enumerate(zip(people, moved, strict=True)):
        others = grid.mean(every - sums[place], grid.count - grid.counts[place])
        maps = mean_maps(others, grid.origin_mm, CELL_MM)
        own.fit(maps, person.gram, person.products, covariances[place], _NOISE, steps=2)
    common = np.mean([own.amounts[0] for own in moved], axis=0)
    for own in moved:
        own.amounts[0] -= common


class _Grid:
    """Cells that hold all voxels of all people."""

    def __init__(self, places_mm: Sequence[Float64]) -> None:
        every = np.concatenate(list(places_mm))
        margin = 3 * SMOOTHING_MM
        self.origin_mm = every.min(0) - margin
        self.shape = tuple(int(n) for n in np.ceil((every.max(0) + margin - self.origin_mm) / CELL_MM) + 1)
        self._where = [(places - self.origin_mm) / CELL_MM for places in places_mm]
        nearest = [np.rint(where).astype(np.intp).T for where in self._where]
        self._cells = [np.ravel_multi_index(tuple(one), self.shape) for one in nearest]
        self.counts = [self.splat(np.ones((1, len(p)), np.float32), i)[0] for i, p in enumerate(places_mm)]
        self.count = np.sum(self.counts, axis=0)
        self.typical = float(np.median(self.count[self.count > 0.01 * self.count.max()]))

    def splat(self, values: Float32, person: int) -> Float32:
        """Sum values (k, v) of a person's voxels into cells and smooth: (k, x, y, z)."""
        n = int(np.prod(self.shape))
        sums = np.stack([np.bincount(self._cells[person], one, minlength=n) for one in values])
        sigma = (0, *(SMOOTHING_MM / CELL_MM,) * 3)
        return np.asarray(ndimage.gaussian_filter(sums.reshape(-1, *self.shape).astype(np.float32), sigma))

    def read(self, sums: Float32, count: Float32, person: int) -> Float32:
        """Averages (k, v) at a person's voxels."""
        return read_cells(_cells_first(self.mean(sums, count)), self._where[person]).astype(np.float32)

    def mean(self, sums: Float32, count: Float32) -> Float32:
        """Averages in the cells."""
        return np.asarray(sums / (count + _RARE * self.typical), np.float32)

    def at(self, field: NDArray[np.floating], person: int) -> Float64:
        """Value (v,) of a field (x, y, z) at a person's voxels."""
        return np.asarray(read_cells(field[..., None], self._where[person])[0])


def _cells_first(maps: Float32) -> Float32:
    """Lay out maps (k, x, y, z) as (x, y, z, k): what is read at one place then lies together."""
    return np.ascontiguousarray(np.moveaxis(maps, 0, -1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Posterior:
    """Weights of a person's voxels given prior and trials; covariance ``axes diag(variance_v) axes'``."""

    weights: Float32
    axes: Float64
    variance: Float64

    def spread(self, factor: Float64) -> Float64:
        """Mean over voxels of the covariance, each times a factor (v,): (k, k)."""
        return np.asarray((self.axes * (self.variance * factor).mean(1)) @ self.axes.T)

    def traces(self, matrix: Float64) -> Float64:
        """Trace (v,) of a matrix (k, k) times each voxel's covariance."""
        return np.asarray(np.einsum("ki,kl,li->i", self.axes, matrix, self.axes) @ self.variance)


def _posterior(person: PersonStatistics, mean: Float32, covariance: Float64, scale: Float64) -> _Posterior:
    root = np.linalg.cholesky(covariance)
    powers, turn = np.linalg.eigh(root.T @ person.gram @ root)
    axes = root @ turn
    left = axes.T.astype(np.float32) @ (person.products - person.gram.astype(np.float32) @ mean)
    variance = _NOISE / (_NOISE / scale + np.maximum(powers, 0)[:, None])
    weights = mean + axes.astype(np.float32) @ (left * (variance / _NOISE).astype(np.float32))
    return _Posterior(weights=weights, axes=axes, variance=variance)
