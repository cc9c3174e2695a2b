"""From betas to components: voxel choice, scale and ridge, chosen by predictions of trials that had no part in them.

The voxel choice looks at the stimuli, so leave-one-out within the chosen voxels would flatter and send the penalty to
its floor. Here voxels, scale and weights are made anew without each fold, for every size of the voxel set and every
penalty; the pair with the smallest error on the left-out folds wins, per token group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.ridge import N_PENALTIES, Spectrum, penalties
from calibration.targets import Targets
from rtdecode.errors import CalibrationError

Float64 = NDArray[np.float64]
Betas = NDArray[np.floating[Any]]

VOXEL_COUNTS = (500, 1000, 2000, 4000, 8000)
"""Sizes of the voxel set that are compared, beside all voxels."""
_LEAST_FOLDS, _MAX_FOLDS = 3, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What held-out predictions chose.

    Attributes
    ----------
    n_voxels : int or None
        None keeps all that vary.
    penalties : tuple of int
        Place in the grid of `ridge.penalties`, one for each block of targets.
    """

    n_voxels: int | None
    penalties: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regression:
    """A linear map from betas to components.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
    mean, scale : ndarray of shape (s,), float64
    weights : ndarray of shape (s, k), float64
    intercept : ndarray of shape (k,), float64
    """

    voxels: NDArray[np.int64]
    mean: Float64
    scale: Float64
    weights: Float64
    intercept: Float64

    def __call__(self, betas: Betas) -> Float64:
        """Components (n, k) of betas (n, v); a voxel without an estimate counts as its mean."""
        standard = (betas[:, self.voxels] - self.mean) / self.scale
        return np.asarray(np.nan_to_num(standard, posinf=0, neginf=0) @ self.weights + self.intercept)


def folds(groups: NDArray[np.int64], least: int = 1) -> list[NDArray[np.int64]]:
    """Split trials into at most eight folds, never a group between two.

    Parameters
    ----------
    groups : ndarray of shape (n,), int64
        Trials with the same number are held out together.
    least : int
        Groups in a fold, where that leaves three folds.

    Returns
    -------
    list of ndarray
        Trials of each fold; groups enter in order of appearance, so that folds are near in time.
    """
    _, first = np.unique(groups, return_index=True)
    ordered = groups[np.sort(first)]
    parts = np.array_split(ordered, min(_MAX_FOLDS, len(ordered), max(_LEAST_FOLDS, len(ordered) // least)))
    return [np.flatnonzero(np.isin(groups, part)) for part in parts]


def sizes_for(n_voxels: int) -> tuple[int | None, ...]:
    """Sizes of the voxel set to compare in a mask of `n_voxels`; None stands for all that vary."""
    return None, *(count for count in VOXEL_COUNTS if count < n_voxels)


def choose(
    betas: Betas, targets: Targets, groups: NDArray[np.int64], sizes: tuple[int | None, ...]
) -> tuple[Choice, Float64]:
    """Choose the voxel set and the penalties.

    Parameters
    ----------
    betas : ndarray of shape (n, v)
        Percent signal change.
    targets : Targets
        Of the same trials.
    groups : ndarray of shape (n,), int64
        See `folds`.
    sizes : tuple of int or None
        Sizes of the voxel set to compare; see `sizes_for`.

    Returns
    -------
    choice : Choice
    held_out : ndarray of shape (n, k)
        Components predicted under that choice without the trial's fold. The choice has seen it: what is learned from
        these predictions must be judged on others.

    Raises
    ------
    CalibrationError
        No voxel varies.
    """
    n, k = targets.components.shape
    predicted = np.empty((len(sizes), N_PENALTIES, n, k))
    everyone = np.arange(n)
    for fold in folds(groups):
        rest = np.setdiff1d(everyone, fold)
        components = targets.components[rest]
        for i, voxels in enumerate(_voxel_sets(betas[rest], components, targets, sizes)):
            standard, mean, scale = _standardise(betas[rest], voxels)
            others = np.nan_to_num((betas[np.ix_(fold, voxels)] - mean) / scale, posinf=0, neginf=0)
            spectrum = Spectrum(_kernel(standard), components)
            cross = (others.astype(np.float32) @ standard.T).astype(np.float64)
            predicted[i][:, fold] = spectrum.predict(cross, penalties(spectrum))
    errors = np.square(predicted - targets.components).sum(2) * targets.variance
    by_block = np.stack([errors[:, :, block].sum(2) for block in targets.blocks])
    size = int(by_block.min(2).sum(0).argmin())
    chosen = tuple(int(j) for j in by_block[:, size].argmin(1))
    held_out = np.empty((n, k))
    for j, block in zip(chosen, targets.blocks, strict=True):
        held_out[:, block] = predicted[size, j][:, block]
    return Choice(n_voxels=sizes[size], penalties=chosen), held_out


def gains(held_out: Float64, truth: Float64) -> Float64:
    """Best factor (k,), 0 to 1, from held-out predictions (n, k) to the truth (n, k); 0 switches a component off."""
    wanted = truth - truth.mean(0)
    power = np.square(held_out).sum(0)
    gain = np.divide((held_out * wanted).sum(0), power, out=np.zeros(len(power)), where=power > 0)
    return np.asarray(np.clip(gain, 0, 1))


def fit(betas: Betas, targets: Targets, choice: Choice) -> Regression:
    """Fit on all trials, as chosen.

    Raises
    ------
    CalibrationError
        No voxel varies.
    """
    components = targets.components
    (voxels,) = _voxel_sets(betas, components, targets, (choice.n_voxels,))
    standard, mean, scale = _standardise(betas, voxels)
    spectrum = Spectrum(_kernel(standard), components)
    grid = penalties(spectrum)
    weights = np.empty((len(voxels), components.shape[1]))
    for j, block in zip(choice.penalties, targets.blocks, strict=True):
        weights[:, block] = standard.T @ spectrum.dual(float(grid[j]))[:, block].astype(np.float32)
    return Regression(voxels=voxels, mean=mean, scale=scale, weights=weights, intercept=components.mean(0))


def _voxel_sets(
    betas: Betas, components: Float64, targets: Targets, sizes: tuple[int | None, ...]
) -> Iterator[NDArray[np.int64]]:
    """For each size, the voxels that share most variance with the stimuli's tokens, in ascending order."""
    deviation = betas.std(0)
    usable = np.flatnonzero(np.isfinite(deviation) & (deviation > 0))
    if len(usable) == 0:
        raise CalibrationError("no voxel varies over the calibration trials; check the mask and the events")
    wanted = (components - components.mean(0)) * np.sqrt(targets.variance)
    covariance = wanted.T.astype(np.float32) @ (betas[:, usable] - betas[:, usable].mean(0)).astype(np.float32)
    order = np.argsort(-np.square(covariance / deviation[usable]).sum(0), kind="stable")
    for size in sizes:
        yield usable if size is None else np.sort(usable[order[:size]])


def _standardise(betas: Betas, voxels: NDArray[np.int64]) -> tuple[NDArray[np.float32], Float64, Float64]:
    chosen = betas[:, voxels]
    mean, scale = chosen.mean(0, dtype=np.float64), chosen.std(0, dtype=np.float64)
    return ((chosen - mean) / scale).astype(np.float32), mean, scale


def _kernel(standard: NDArray[np.float32]) -> Float64:
    return np.asarray(standard @ standard.T, dtype=np.float64)
