"""What a brain is asked to predict: principal components of each token group over the calibration stimuli."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import CalibrationError

MAX_COMPONENTS = 128
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """Whitened components, one token group after the other.

    Attributes
    ----------
    components : ndarray of shape (n, k), float64
        Mean 0 and variance 1 over trials.
    basis : ndarray of shape (k, m), float64
        Components to flattened tokens; orthogonal rows, each within one token group.
    token_mean : ndarray of shape (m,), float64
    blocks : tuple of slice
        Components of each token group; empty where the group does not vary.
    variance : ndarray of shape (k,), float64
        Token variance that each component stands for.
    """

    components: NDArray[np.float64]
    basis: NDArray[np.float64]
    token_mean: NDArray[np.float64]
    blocks: tuple[slice, ...]
    variance: NDArray[np.float64]


def components_of_products(
    products: Sequence[NDArray[np.float64]], *, most: int = MAX_COMPONENTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the components of `make_targets` from inner products of tokens, where tokens are too many to decompose.

    Parameters
    ----------
    products : sequence of ndarray of shape (n, n)
        Of the tokens of each group, between trials.
    most : int
        As of `make_targets`.

    Returns
    -------
    components : ndarray of shape (n, k)
        Whitened, each with an arbitrary sign.
    share : ndarray of shape (k,)
        Of the variance of its group, each group counting alike; they add up to 1.
    """
    n = len(products[0])
    found = []
    for one in products:
        mean = one.mean(0)
        values, vectors = np.linalg.eigh(one - mean - mean[:, None] + mean.mean())
        kept = min(most, n - 1, int(np.sum(values > _LEAST_VARIANCE * max(values[-1], 0.0))))
        if kept and values[-1] > 0:
            values = values[::-1][:kept]
            found.append((vectors[:, ::-1][:, :kept] * np.sqrt(n), values / values.sum()))
    if not found:
        return np.zeros((n, 0)), np.zeros(0)
    return (
        np.concatenate([components for components, _ in found], axis=1),
        np.concatenate([share for _, share in found]) / len(found),
    )


def rows(targets: Targets, trials: NDArray[np.int64]) -> Targets:
    """Return the same targets for some of the trials."""
    return replace(targets, components=targets.components[trials])


def make_targets(tokens: NDArray[np.floating], groups: Sequence[slice], *, most: int = MAX_COMPONENTS) -> Targets:
    """Find the components of the shown stimuli.

    Parameters
    ----------
    tokens : ndarray of shape (n, t, d)
        Clean tokens of the stimulus of each trial.
    groups : sequence of slice
        Token groups, as slices of the flattened tokens.
    most : int
        Components of a group at most; see `calibration.supported`.

    Raises
    ------
    CalibrationError
        All stimuli have the same tokens.
    """
    flat = tokens.reshape(len(tokens), -1).astype(np.float64)
    if not np.ptp(flat, axis=0).any():
        raise CalibrationError("the calibration stimuli all have the same tokens; show different ones")
    mean = flat.mean(0)
    scores, bases, blocks, first = [], [], [], 0
    total = np.square(flat - mean).sum() / len(flat)
    for group in groups:
        left, strengths, right = np.linalg.svd(flat[:, group] - mean[group], full_matrices=False)
        deviations = strengths / np.sqrt(len(flat))
        kept = int(np.sum(np.square(deviations) > _LEAST_VARIANCE * total / flat.shape[1]))
        kept = min(kept, most, len(flat) - 1)
        basis = np.zeros((kept, flat.shape[1]))
        basis[:, group] = right[:kept] * deviations[:kept, None]
        scores.append(left[:, :kept] * np.sqrt(len(flat)))
        bases.append(basis)
        blocks.append(slice(first, first + kept))
        first += kept
    basis = np.concatenate(bases)
    return Targets(
        components=np.concatenate(scores, axis=1),
        basis=basis,
        token_mean=mean,
        blocks=tuple(blocks),
        variance=np.square(basis).sum(1),
    )
