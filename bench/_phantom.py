"""The simulator's head as a phantom whose motion is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtdecode.estimate.registration import rigid_matrix
from rtdecode.simulate import render
from rtdecode.simulate.head import make_head
from rtdecode.simulate.protocol import Protocol

Matrix = NDArray[np.float64]


class Phantom:
    """The simulator's head, rendered wherever it has moved to, with Rician noise."""

    def __init__(self, protocol: Protocol, tsnr: float, seed: int) -> None:
        head = make_head(seed)
        self.affine, self._shape, self._tsnr = protocol.affine, protocol.shape, tsnr
        self._coefficients = ndimage.spline_filter(head.signal, order=3, output=np.float32, mode="mirror")
        self._to_head = np.linalg.inv(head.affine)
        self._voxels = np.argwhere(np.ones(protocol.shape, bool))
        self._rng = np.random.default_rng(seed)

    def render(self, matrix: Matrix, gain: NDArray[np.floating[Any]] | float = 1.0) -> NDArray[np.float32]:
        """Render the head moved by `matrix`, stored values."""
        moved = self._to_head @ np.linalg.inv(matrix) @ self.affine
        clean = gain * render.sample(self._coefficients, moved, self._voxels).reshape(self._shape)
        sigma = clean[clean > clean.max() / 3].mean() / self._tsnr
        noise = sigma * self._rng.standard_normal((2, *self._shape))
        return np.round(np.hypot(clean + noise[0], noise[1])).astype(np.float32)

    def motion(self, centre: Matrix) -> Matrix:
        """Draw a motion of at most 3 mm and 3 degrees."""
        parameters = np.concatenate([self._rng.uniform(-3, 3, 3), np.deg2rad(self._rng.uniform(-3, 3, 3))])
        return rigid_matrix(parameters, centre)
