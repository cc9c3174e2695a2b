"""Calibration trials scored by decoders that know nothing of them: the honest figure, and what evidence rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration import regression, scoring
from calibration.targets import Targets, rows

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """Log-likelihoods of calibration trials.

    Attributes
    ----------
    categories : ndarray of shape (n, c)
    stimuli : ndarray of shape (n, m)
        Under each of the `m` calibration stimuli.
    """

    categories: Float64
    stimuli: Float64


def judge(
    betas: regression.Betas,
    targets: Targets,
    groups: NDArray[np.int64],
    n_voxels: int | None,
    *,
    parts: list[NDArray[np.int64]],
    category: NDArray[np.int64],
    prototypes: Float64,
    stimuli: Float64,
) -> Judgement:
    """Calibrate anew without each fold, gains and scorer included, and score the fold.

    Nesting matters: predictions of two trials rest on the similarity of the same two betas, so gains learned from the
    held-out predictions of other trials still keep the components that happen to suit this one. Pure noise in a design
    of 32 blocks then passes a test at .05 in a fifth of all cases.

    Parameters
    ----------
    betas : ndarray of shape (n, v)
    targets : Targets
    groups : ndarray of shape (n,), int64
        See `regression.folds`; at least three.
    n_voxels : int or None
        Size of the voxel set.
    parts : list of ndarray of int64
        Trials of each fold; no group in two.
    category : ndarray of shape (n,), int64
        True category of each trial.
    prototypes : ndarray of shape (c, k)
        Components of each category.
    stimuli : ndarray of shape (m, k)
        Components of the distinct stimuli.

    Returns
    -------
    Judgement
    """
    by_category = np.empty((len(betas), len(prototypes)))
    by_stimulus = np.empty((len(betas), len(stimuli)))
    everyone = np.arange(len(betas))
    for fold in parts:
        rest = np.setdiff1d(everyone, fold)
        known = rows(targets, rest)
        choice, held_out = regression.choose(betas[rest], known, groups[rest], (n_voxels,))
        gain = scoring.reliability(held_out, known.components).gain
        scorer = scoring.make_scorer(gain * held_out, known.components, category[rest], prototypes)
        predicted = gain * regression.fit(betas[rest], known, choice)(betas[fold])
        by_category[fold] = scorer.categories(predicted)
        by_stimulus[fold] = scorer.candidates(predicted, stimuli)
    return Judgement(categories=by_category, stimuli=by_stimulus)
