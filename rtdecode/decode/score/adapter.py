"""The participant's ridge adapter: from a beta to token components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.from_tensors import from_tensors
from rtdecode.errors import EngineError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """Tensors of ``adapter.safetensors``.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Places in the mask's vector of the voxels used.
    mean, scale : ndarray of shape (s,), float32
        Of the calibration betas, percent signal change.
    weights : ndarray of shape (s, k), float32
        Ridge weights on standardised betas.
    intercept : ndarray of shape (k,), float32
        Components of the mean beta.
    basis : ndarray of shape (k, n), float32
        Components to flattened tokens; rows are orthogonal, and a component has unit variance over the calibration
        stimuli. Each row lies in one token group.
    token_mean : ndarray of shape (n,), float32
        Of the calibration stimuli, flattened.
    r2 : ndarray of shape (k,), float32
        Held-out explained variance of each component, not below 0.
    group_r2 : ndarray of shape (groups,), float32
        The same for each token group as a whole.
    """

    voxels: NDArray[np.int64]
    mean: Float32
    scale: Float32
    weights: Float32
    intercept: Float32
    basis: Float32
    token_mean: Float32
    r2: Float32
    group_r2: Float32

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def chosen(self, beta: Float32) -> Float32:
        """Values (s,) of the adapter's voxels in a beta (v,) of the mask; one without an estimate counts as its mean.

        Raises
        ------
        EngineError
            Fewer than half of them have an estimate.
        """
        values = beta[self.voxels].astype(np.float32)
        known = np.isfinite(values)
        if 2 * known.sum() < len(values):
            raise EngineError(
                f"expected an estimate in at least half of the decoder's {len(values)} voxels, got {known.sum()}"
            )
        return np.where(known, values, self.mean)

    def predict(self, chosen: Float32) -> Float32:
        """Components (k,) of what `chosen` returns."""
        return np.asarray((chosen - self.mean) / self.scale @ self.weights + self.intercept, dtype=np.float32)


def components_of(
    tokens: NDArray[Any], basis: NDArray[np.floating[Any]], token_mean: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Components (n, k) of clean tokens (n, ...), in a basis (k, m) of orthogonal rows."""
    flat = tokens.reshape(len(tokens), -1).astype(np.float64) - token_mean
    return np.asarray(flat @ (basis / np.square(basis).sum(1, keepdims=True)).T)


def adapter_from(tensors: Mapping[str, NDArray[Any]]) -> Adapter:
    """Read an adapter from the tensors of a bundle.

    Raises
    ------
    BundleError
        A tensor is missing.
    """
    return from_tensors(Adapter, tensors, part="adapter")
