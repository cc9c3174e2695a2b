"""What a volume must be before it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import VolumeError
from rtdecode.records import Volume

T_R_TOLERANCE_S = 1e-3


def scaled(volume: Volume, shape: tuple[int, ...] | None) -> NDArray[np.float32]:
    """Return the values of a volume, shape (i, j, k).

    Parameters
    ----------
    volume : Volume
    shape : tuple of int or None
        Expected; None: any of three axes.

    Raises
    ------
    VolumeError
        If the shape is another or a value is not finite.
    """
    path = Path(volume.path)
    if shape is not None and volume.data.shape != shape:
        raise VolumeError(path, "shape", shape, volume.data.shape)
    if volume.data.ndim != 3:
        raise VolumeError(path, "shape", "three axes", volume.data.shape)
    data = np.ascontiguousarray(volume.data, np.float32)
    if (volume.slope, volume.intercept) != (1.0, 0.0):
        data = data * np.float32(volume.slope) + np.float32(volume.intercept)
    if not np.isfinite(data).all():
        raise VolumeError(path, "data", "finite values", "nan or infinity")
    return data


def repetition_time(volume: Volume, known_s: float | None) -> float:
    """Return the repetition time of the run, seconds.

    Parameters
    ----------
    volume : Volume
    known_s : float or None
        From the settings or the volumes before.

    Raises
    ------
    VolumeError
        If nothing tells it, or the volume contradicts what is known.
    """
    told_s = volume.t_r_s
    if known_s is None and told_s is None:
        raise VolumeError(Path(volume.path), "t_r_s", "seconds, in the file or the settings", None)
    if known_s is not None and told_s is not None and abs(known_s - told_s) > T_R_TOLERANCE_S:
        raise VolumeError(Path(volume.path), "t_r_s", known_s, told_s)
    return float(known_s if known_s is not None else told_s)  # type: ignore[arg-type]


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
