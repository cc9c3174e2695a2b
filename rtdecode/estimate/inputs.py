"""What a volume must be before it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import VolumeError
from rtdecode.records import Volume

T_R_TOLERANCE_S = 1e-3
SHORTEST_T_R_S, LONGEST_T_R_S = 0.01, 30.0


def scaled(volume: Volume, shape: tuple[int, ...] | None) -> NDArray[np.float32]:
    """Return the values of a volume, shape (i, j, k), as they are: some may not be finite.

    Parameters
    ----------
    volume : Volume
    shape : tuple of int or None
        Expected; None: any of three axes.

    Raises
    ------
    VolumeError
        If the shape is another.
    """
    path = Path(volume.path)
    if shape is not None and volume.data.shape != shape:
        raise VolumeError(path, "shape", shape, volume.data.shape)
    if volume.data.ndim != 3:
        raise VolumeError(path, "shape", "three axes", volume.data.shape)
    data = np.ascontiguousarray(volume.data, np.float32)
    if (volume.slope, volume.intercept) != (1.0, 0.0):
        data = data * np.float32(volume.slope) + np.float32(volume.intercept)
    return data


def filled(volume: Volume, data: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the values of a volume with zeros where they are not finite, outside the head.

    Parameters
    ----------
    volume : Volume
    data : array of shape (i, j, k), float32
        Its values.
    needed : array of shape (i, j, k), bool
        Voxels that must be finite.

    Raises
    ------
    VolumeError
        If one of them is not.
    """
    finite = np.isfinite(data)
    if finite.all():
        return data
    lost = int((needed & ~finite).sum())
    if lost:
        raise VolumeError(Path(volume.path), "data", "finite values in the brain", f"nan or infinity in {lost} voxels")
    return np.where(finite, data, np.float32(0))


def repetition_time(volume: Volume, known_s: float | None, *, measured: bool = False) -> float:
    """Return the repetition time of the run, seconds: as known, unless the volume brings one that was measured.

    Parameters
    ----------
    volume : Volume
    known_s : float or None
        From the settings or the volumes before.
    measured : bool
        `known_s` was measured: what headers say does not count.

    Raises
    ------
    VolumeError
        If nothing tells it, it cannot be true, or the volume contradicts what is known.
    """
    told_s = volume.t_r_s
    if told_s is not None and (known_s is None or volume.t_r_measured):
        known_s = float(told_s)
    if known_s is None:
        raise VolumeError(Path(volume.path), "t_r_s", "seconds, in the file or the settings", None)
    if not SHORTEST_T_R_S <= known_s <= LONGEST_T_R_S:
        raise VolumeError(Path(volume.path), "t_r_s", f"{SHORTEST_T_R_S:g} to {LONGEST_T_R_S:g} s", known_s)
    if told_s is not None and not measured and abs(known_s - told_s) > T_R_TOLERANCE_S:
        raise VolumeError(Path(volume.path), "t_r_s", known_s, told_s)
    return known_s


def motion_row(motion: NDArray[np.float64], volume: Volume) -> NDArray[np.float64]:
    """Return the given motion of a volume, shape (6,).

    Raises
    ------
    VolumeError
        If there is no row for it.
    """
    row = volume.stamp.volume
    if row >= len(motion):
        raise VolumeError(Path(volume.path), "motion_file", f"a row for volume {row}", f"{len(motion)} rows")
    return np.asarray(motion[row])
