"""Predictions brought to the mean and spread of what they were trained on, by statistics that do not look ahead.

The published decoder takes mean and spread of the predictions over its whole test set. A session has only its past:
here they are those of a warm-up, or of the calibration, and stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrozenStatistics:
    """Statistics of one head, per output.

    Attributes
    ----------
    predicted_mean, predicted_deviation : ndarray of shape (m,)
        Of raw predictions.
    target_mean, target_deviation : ndarray of shape (m,)
        Of the targets of the training.
    """

    predicted_mean: Array
    predicted_deviation: Array
    target_mean: Array
    target_deviation: Array

    def __call__(self, predicted: Array) -> Array:
        """Normalise raw predictions (n, m)."""
        standard = (predicted - self.predicted_mean) / (self.predicted_deviation + _FLOOR)
        return np.asarray(standard * self.target_deviation + self.target_mean)


def frozen_statistics(predicted: Array, targets: Array) -> FrozenStatistics:
    """Freeze the statistics of some predictions, at least two, and of the targets of the training.

    Parameters
    ----------
    predicted : ndarray of shape (n, m)
        Of a warm-up: the first trials of a task.
    targets : ndarray of shape (trials, m)

    Raises
    ------
    ValueError
        There are fewer than two of either.
    """
    for what, rows in (("predictions of the warm-up", predicted), ("targets of the training", targets)):
        if len(rows) < 2:
            raise ValueError(f"expected at least two {what}, got {len(rows)}: one has no spread")
    return FrozenStatistics(
        predicted_mean=predicted.mean(0),
        predicted_deviation=predicted.std(0, ddof=1),
        target_mean=targets.mean(0),
        target_deviation=targets.std(0, ddof=1),
    )


def unit_rows(values: Array) -> Array:
    """Bring the last axis to length 1."""
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12))
