"""FittedRidge regression on principal components of rows too wide to hold, with exact leave-one-out figures.

With fewer rows than columns everything happens in the n x n inner products of the rows, which are summed over blocks
of columns. Components are orthogonal, so one decomposition serves every penalty; leaving out a row changes its residual
by the factor 1 / (1 - h) (Cook & Weisberg 1982), h holding the intercept, which is not penalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from rtdecode.errors import TrainingError

Float64 = NDArray[np.float64]

_RELATIVE_PENALTIES = np.logspace(-4, 4, 25)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """Principal components of n rows of m values.

    Attributes
    ----------
    mean : ndarray of shape (m,), float32
    basis : ndarray of shape (k, m), float16 or float32
        Orthonormal rows, the largest component first.
    vectors : ndarray of shape (n, k)
        Left singular vectors of the centred rows.
    values : ndarray of shape (k,)
        Squared singular values.
    """

    mean: NDArray[np.float32]
    basis: NDArray[Any]
    vectors: Float64
    values: Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedRidge:
    """FittedRidge regression from scores on components to targets.

    Attributes
    ----------
    weights : ndarray of shape (k, targets)
    intercept : ndarray of shape (targets,)
    penalty : float
        On the weights, unlike the intercept.
    held_out_r2 : float
        Of every row predicted from the others with the components of all, over all targets together; 0 is no better
        than the mean of all.
    """

    weights: Float64
    intercept: Float64
    penalty: float
    held_out_r2: float


def principal(
    blocks: Callable[[], Iterable[Float64]], shape: tuple[int, int], *, most: int, dtype: type[np.floating[Any]]
) -> Components:
    """Find the principal components of rows that are read twice, in blocks of columns.

    Parameters
    ----------
    blocks : callable
        Gives arrays (n, columns), which are overwritten, from the first columns to the last.
    shape : tuple of int
        n and m, rows and columns.
    most : int
        Number of components at most. Those are left out whose variance, relative to the first, is below what sums in
        float64 tell apart.
    dtype : type
        Of the basis.

    Raises
    ------
    TrainingError
        All rows are the same.
    """
    n, width = shape
    mean = np.empty(width)
    products = np.zeros((n, n))
    at, differ = 0, False
    for block in blocks():
        part = slice(at, at + block.shape[1])
        differ = differ or bool((block != block[0]).any())
        mean[part] = block.mean(0)
        block -= mean[part]
        products += block @ block.T
        at = part.stop
    if not differ:
        raise TrainingError(f"expected pictures that differ in their tokens, got {n} with the same ones")
    values, vectors = eigh(products, subset_by_index=(max(0, n - most), n - 1), overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > values[0] * np.sqrt(np.finfo(np.float64).eps)
    values, vectors = values[kept], vectors[:, kept]
    basis = np.empty((len(values), width), dtype)
    at = 0
    for block in blocks():
        part = slice(at, at + block.shape[1])
        block -= mean[part]
        basis[:, part] = (vectors / np.sqrt(values)).T @ block
        at = part.stop
    return Components(mean=mean.astype(np.float32), basis=basis, vectors=vectors, values=values)


def fit_ridge(components: Components, targets: Float64) -> FittedRidge:
    """Fit targets (n, targets) with the penalty whose error, leaving out one row at a time, is smallest.

    Raises
    ------
    TrainingError
        All targets are the same.
    """
    vectors, values = components.vectors, components.values
    if (targets == targets[0]).all():
        raise TrainingError(f"expected ridge outputs that differ between pictures, got the same of all {len(targets)}")
    intercept = targets.mean(0)
    about = targets - intercept
    projected = vectors.T @ about
    outside = about - vectors @ projected  # what no penalty explains
    free = np.clip(1 - 1 / len(targets) - np.square(vectors).sum(1), 0, None)

    def held_out_error(penalty: float) -> float:
        withheld = penalty / (values + penalty)
        residual = outside + (vectors * withheld) @ projected
        return float(np.square(residual / (free + np.square(vectors) @ withheld)[:, None]).sum())

    errors = {float(penalty): held_out_error(penalty) for penalty in values.mean() * _RELATIVE_PENALTIES}
    penalty = min(errors, key=lambda one: errors[one])
    return FittedRidge(
        weights=(np.sqrt(values) / (values + penalty))[:, None] * projected,
        intercept=intercept,
        penalty=penalty,
        held_out_r2=1 - errors[penalty] / float(np.square(about).sum()),
    )
