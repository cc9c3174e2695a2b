"""What the simulated scanner is told to acquire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """An echo-planar sequence.

    Attributes
    ----------
    shape : tuple of int
        Columns, rows, slices.
    voxel_mm : tuple of float
        Distance between columns, rows, slices.
    t_r_s : float
        Repetition time in seconds.
    tilt_deg : float
        Rotation of the slices about the left-right axis; positive lifts the front.
    centre_mm : tuple of float
        Centre of the field of view, RAS mm.
    multiband : int
        Slices excited together; divides the number of slices.
    """

    shape: tuple[int, int, int] = (64, 64, 36)
    voxel_mm: tuple[float, float, float] = (3.4, 3.4, 3.8)
    t_r_s: float = 1.5
    tilt_deg: float = -12.0
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 2.0)
    multiband: int = 2

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to RAS+ mm; columns run to the left, rows to the back, slices upward."""
        turn = np.deg2rad(self.tilt_deg)
        axes = np.array([[-1.0, 0.0, 0.0], [0.0, -np.cos(turn), -np.sin(turn)], [0.0, -np.sin(turn), np.cos(turn)]])
        affine = np.eye(4)
        affine[:3, :3] = axes * self.voxel_mm
        affine[:3, 3] = np.asarray(self.centre_mm) - affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2)
        return affine

    @property
    def slice_times_s(self) -> NDArray[np.float64]:
        """Acquisition time of each slice after the start of the volume; interleaved as Siemens does."""
        shots = self.shape[2] // self.multiband
        if shots * self.multiband != self.shape[2]:
            raise ValueError(f"expected slices in multiples of {self.multiband}, got {self.shape[2]}")
        first = 1 - shots % 2
        order = [*range(first, shots, 2), *range(1 - first, shots, 2)]
        times = np.empty(shots)
        times[order] = np.round(np.arange(shots) * self.t_r_s / shots / 0.0025) * 0.0025
        return np.tile(times, self.multiband)
