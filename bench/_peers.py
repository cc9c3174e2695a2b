"""Peers that benches run beside the project, and how both are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SPM_FLAGS = {
    "quality": 0.9,
    "fwhm": 5,
    "sep": 4,
    "interp": 4,
    "wrap": np.zeros((3, 1)),
    "rtm": 0,
    "PW": "",
    "lkp": np.arange(6),
    "mask": 1,
    "mean": 0,
    "which": 2,
}  # OpenNFT's


class Spm:
    """python-rtspm, called as OpenNFT calls it."""

    def __init__(self, reference: NDArray[np.float32], affine: Matrix) -> None:
        import rtspm

        self._rtspm = rtspm
        from_one = np.eye(4)
        from_one[:3, 3] = -1
        self._mat = affine @ from_one
        volume = np.array(reference, order="F", dtype=float)
        self._pair = [{"mat": self._mat, "dim": np.array(reference.shape), "Vol": volume} for _ in range(2)]
        self._state: tuple[Any, ...] | None = None

    def estimate(self, volume: NDArray[np.float32]) -> Matrix:
        """Return the motion of a volume."""
        self._pair[1]["mat"] = self._mat
        self._pair[1]["Vol"] = np.array(volume, order="F", dtype=float)
        state = self._state or (None,) * 6
        which = 1 if self._state is None else 2
        self._pair, *rest, _ = self._rtspm.spm_realign_rt(self._pair, SPM_FLAGS, which, 1, *state)
        self._state = tuple(rest)
        return np.asarray(self._mat @ np.linalg.inv(self._pair[1]["mat"]))

    def reslice(self) -> None:
        """Resample the volume estimated last."""
        self._rtspm.spm_reslice_rt(self._pair, SPM_FLAGS)


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began)


def repeated(action: Callable[[], object], times: int) -> dict[str, float]:
    action()
    taken = [milliseconds(action) for _ in range(times)]
    return {"best_ms": min(taken), "median_ms": float(np.median(taken)), "p99_ms": float(np.quantile(taken, 0.99))}
