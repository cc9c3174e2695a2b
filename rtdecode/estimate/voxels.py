"""What differs between voxels, in bins: response, autocorrelation, shrinkage and moment of acquisition.

Weights are computed once per group of voxels that share a bin of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.design import HRF_STRETCHES, RunTiming
from rtdecode.estimate.glm import Scales
from rtdecode.estimate.learning import FREE, FinishedRun, Parts, quadratic_forms

FloatArray = NDArray[np.float64]

CANONICAL = HRF_STRETCHES.index(1.0)
RHOS = tuple(i / 10 for i in range(8))
SHRINKAGES = (0.1, 0.3, 1.0, 3.0, 10.0)
_STRETCH_SD = 0.12  # of the logarithm, over voxels around the canonical response
_SHRINKAGE_SD = 1.0  # of the logarithm
_RHO_SD = 0.15
_PHASE_BIN_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VoxelModel:
    """Bins of each voxel of the mask.

    Attributes
    ----------
    hrf : array of shape (v,), int
        Place in `HRF_STRETCHES`.
    rho : array of shape (v,), int
        Place in `RHOS`; -1 keeps the pooled value.
    shrinkage : array of shape (v,), int
        Place in `SHRINKAGES`: factor on the variance of trials.
    """

    hrf: NDArray[np.intp]
    rho: NDArray[np.intp]
    shrinkage: NDArray[np.intp]


def same_everywhere(n_voxels: int) -> VoxelModel:
    """Return the model in which no voxel differs from the pooled values."""
    return VoxelModel(
        hrf=np.full(n_voxels, CANONICAL),
        rho=np.full(n_voxels, -1),
        shrinkage=np.full(n_voxels, SHRINKAGES.index(1.0)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the voxels of a group share; `rho` None is the pooled value."""

    stretch: float
    rho: float | None
    shrinkage: float
    phase_s: float | None

    def timing(self, timing: RunTiming) -> RunTiming:
        """Return the run's timing with the group's response and moment."""
        phase_s = timing.phase_s if self.phase_s is None else self.phase_s
        return replace(timing, stretch=self.stretch, phase_s=phase_s)

    def scales(self, scales: Scales | None) -> Scales | None:
        """Return the pooled scales with those of the group."""
        if scales is None:
            return None
        rho = scales.rho if self.rho is None else self.rho
        return replace(scales, trial=scales.trial * self.shrinkage, rho=rho)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Voxels sorted by group.

    Attributes
    ----------
    groups : tuple of g Group
    order : array of shape (v,), int64, or None
        Voxels of the mask, group by group; None: as they are, all in one group.
    bounds : array of shape (g + 1,), int64
        Group i has the places ``bounds[i]`` to ``bounds[i + 1]`` of `order`.
    """

    groups: tuple[Group, ...]
    order: NDArray[np.int64] | None
    bounds: NDArray[np.int64]


def group(n_voxels: int, model: VoxelModel | None = None, phases_s: FloatArray | None = None) -> Groups:
    """Sort voxels into groups.

    Parameters
    ----------
    n_voxels : int
    model : VoxelModel or None
        None: no voxel differs.
    phases_s : array of shape (v,) or None
        Moment within a volume at which each voxel is acquired, seconds, brought to bins of 0.1 s; None: one
        moment for all.
    """
    if model is None and phases_s is None:
        one = Group(stretch=1.0, rho=None, shrinkage=1.0, phase_s=None)
        return Groups(groups=(one,), order=None, bounds=np.array([0, n_voxels]))
    model = model or same_everywhere(n_voxels)
    phase = np.full(n_voxels, -1) if phases_s is None else np.rint(phases_s / _PHASE_BIN_S).astype(np.intp)
    rows = np.stack([model.hrf, model.rho, model.shrinkage, phase], axis=1)
    found, member, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    groups = tuple(
        Group(
            stretch=HRF_STRETCHES[hrf],
            rho=None if rho < 0 else RHOS[rho],
            shrinkage=SHRINKAGES[shrinkage],
            phase_s=None if at < 0 else at * _PHASE_BIN_S,
        )
        for hrf, rho, shrinkage, at in found.tolist()
    )
    order = np.argsort(member.ravel(), kind="stable").astype(np.int64)
    return Groups(groups=groups, order=order, bounds=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


class VoxelLearner:
    """Learns the bins of each voxel from finished runs, by marginal likelihood with a prior.

    Response, autocorrelation and shrinkage are each judged with the others at their pooled values. No label of a
    stimulus is looked at.

    Parameters
    ----------
    hrf, rho, shrinkage : bool
        Which of them to learn.
    """

    def __init__(self, *, hrf: bool, rho: bool, shrinkage: bool) -> None:
        self._stretches = HRF_STRETCHES if hrf else ()
        self._rhos = RHOS if rho else ()
        self._shrinkages = SHRINKAGES if shrinkage else ()
        self._tables: dict[str, FloatArray] = {}

    def add(self, run: FinishedRun, scales: Scales, lag_s: float) -> None:
        """Learn from a run, with the pooled scales and lag; the mean response is left to the data."""
        scales = replace(scales, mean=FREE)
        for i, stretch in enumerate(self._stretches):
            stretched = replace(run, timing=replace(run.timing, stretch=stretch))
            self._see("hrf", len(self._stretches), i, stretched, scales, lag_s)
        for i, rho in enumerate(self._rhos):
            self._see("rho", len(self._rhos), i, run, replace(scales, rho=rho), lag_s)
        for i, factor in enumerate(self._shrinkages):
            scaled = replace(scales, trial=scales.trial * factor)
            self._see("shrinkage", len(self._shrinkages), i, run, scaled, lag_s)

    def _see(self, name: str, count: int, place: int, run: FinishedRun, scales: Scales, lag_s: float) -> None:
        table = self._tables.setdefault(name, np.zeros((count, run.percent.shape[1])))
        forms, determinant = quadratic_forms(Parts(run, lag_s).covariance(scales), run.percent)
        table[place] -= 0.5 * ((len(run.rows) - 1) * np.log(forms) + determinant)

    def model(self, scales: Scales | None) -> VoxelModel | None:
        """Return the most probable bins so far; None before the first run.

        Parameters
        ----------
        scales : Scales or None
            Pooled values, around which the prior lies.
        """
        if not self._tables or scales is None:
            return None
        priors = {
            "hrf": -0.5 * (np.log(HRF_STRETCHES) / _STRETCH_SD) ** 2,
            "rho": -0.5 * ((np.array(RHOS) - scales.rho) / _RHO_SD) ** 2,
            "shrinkage": -0.5 * (np.log(SHRINKAGES) / _SHRINKAGE_SD) ** 2,
        }
        best = {name: np.argmax(table + priors[name][:, None], axis=0) for name, table in self._tables.items()}
        plain = same_everywhere(next(iter(self._tables.values())).shape[1])
        return VoxelModel(
            hrf=best.get("hrf", plain.hrf),
            rho=best.get("rho", plain.rho),
            shrinkage=best.get("shrinkage", plain.shrinkage),
        )
