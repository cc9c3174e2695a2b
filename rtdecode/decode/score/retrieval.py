"""How well predicted components fit candidates and categories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.from_tensors import from_tensors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scorer:
    """Gaussian model of a prediction given the truth, learned from held-out calibration trials.

    A stimulus with components ``z`` gives predictions ``N(slope * z, precision^-1)``; a category gives predictions
    ``N(slope * prototype, category_precision^-1)``, whose spread holds the differences within a category too.

    Attributes
    ----------
    slope : ndarray of shape (k,), float32
        How much of a true component is predicted.
    precision, category_precision : ndarray of shape (k, k), float32
        Inverse covariance of what is predicted around a stimulus, and around a category.
    prototypes : ndarray of shape (c, k), float32
        Components of each category's mean tokens.
    """

    slope: Float32
    precision: Float32
    category_precision: Float32
    prototypes: Float32

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def candidates(self, predicted: NDArray[Any], components: NDArray[Any]) -> Float64:
        """Log-likelihood (m, n), up to a constant, of predictions (m, k) under candidates (n, k)."""
        return _log_likelihood(predicted, self.slope * components, self.precision)

    def categories(self, predicted: NDArray[Any]) -> Float64:
        """Log-likelihood (m, c), up to a constant, of predictions (m, k) under each category."""
        return _log_likelihood(predicted, self.slope * self.prototypes, self.category_precision)


def scorer_from(tensors: Mapping[str, NDArray[Any]]) -> Scorer:
    """Read a scorer from the tensors of a bundle.

    Raises
    ------
    BundleError
        A tensor is missing.
    """
    return from_tensors(Scorer, tensors, part="evidence")


def _log_likelihood(predicted: NDArray[Any], means: NDArray[Any], precision: NDArray[Any]) -> Float64:
    predicted, means, precision = (np.asarray(a, dtype=np.float64) for a in (predicted, means, precision))
    weighted = means @ precision
    return np.asarray(predicted @ weighted.T - 0.5 * (weighted * means).sum(1))
