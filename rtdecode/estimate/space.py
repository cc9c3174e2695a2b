"""The space of a session: its reference volume, brain, mask and registrar; and the motion files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.derivatives import Voxels
from rtdecode.errors import SettingsError
from rtdecode.estimate import registration
from rtdecode.estimate.labels import read_mask, read_parcels
from rtdecode.estimate.mask import brain_mask
from rtdecode.settings import EstimateSettings

_LARGEST_TURN = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A volume brought to the reference; see `RegisteredVolume` for the fields."""

    masked: NDArray[np.float32]
    matrix: NDArray[np.float64]
    motion: NDArray[np.float64]
    fit: float


class Space:
    """The reference volume and what follows from it; fixed for the session.

    Attributes
    ----------
    data : array of shape (i, j, k), float32
        The reference; zero where it is not finite.
    affine : array of shape (4, 4), float64
        Its voxel indices to RAS mm.
    brain : array of shape (i, j, k), bool
    mask : array of shape (i, j, k), bool
        Voxels that have betas.
    needed : array of shape (i, j, k), bool
        Those of either.
    regions : dict of str to array of shape (i, j, k), bool
    parcels : dict of str to Parcels

    Parameters
    ----------
    data : array of shape (i, j, k), float32
        What is not finite is no brain, whatever the masks say.
    affine : array of shape (4, 4), float64
    settings : EstimateSettings
    mask : array of shape (i, j, k), bool, or None
        That of the calibration; None: as the settings say.

    Raises
    ------
    ValueError
        If the volume holds no head.
    SettingsError
        If a mask file does not fit it.
    """

    def __init__(
        self,
        data: NDArray[np.float32],
        affine: NDArray[np.float64],
        settings: EstimateSettings,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        finite = np.isfinite(data)
        data = np.where(finite, data, np.float32(0))
        self.data = data
        self.affine = affine
        given = mask
        if given is None and settings.mask != "auto":
            given = read_mask("mask", settings.mask, data.shape, affine) & finite
            if not given.any():
                raise SettingsError([f"$.estimate.mask: expected voxels with values, got none: {settings.mask}"])
        try:
            self.brain = brain_mask(data) & finite
        except ValueError:
            if given is None:
                raise
            self.brain = given
        self.mask = mask = self.brain if given is None else given
        self.needed = self.mask | self.brain
        self.regions = {
            name: read_mask(f"regions.{name}", path, data.shape, affine) for name, path in settings.regions.items()
        }
        self.parcels = {
            name: read_parcels(f"parcels.{name}", path, data.shape, affine, mask)
            for name, path in settings.parcels.items()
        }
        self._registrar: registration.Registrar | None = None
        if settings.registration == "rigid":
            exclude = None if np.array_equal(mask, self.brain) else mask
            self._registrar = registration.Registrar(data, affine, exclude, self.brain)
        index = np.argwhere(self.mask)
        self._points = (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        self._values = data[self.brain]

    @property
    def centre_mm(self) -> NDArray[np.float64] | None:
        """Point that the rotations turn about, RAS mm, shape (3,); None without registration."""
        return None if self._registrar is None else self._registrar.centre

    @property
    def voxels(self) -> Voxels:
        """What is written of the space."""
        return Voxels(reference=self.data, affine=self.affine, mask=self.mask, centre_mm=self.centre_mm)

    def place(self, data: NDArray[np.float32], affine: NDArray[np.float64]) -> Placed:
        """Register a volume and sample the mask; without registration, take the mask as it lies.

        Parameters
        ----------
        data : array of shape (i, j, k), float32
        affine : array of shape (4, 4), float64
        """
        if self._registrar is None:
            masked = data[self.mask]
            fit = _correlation(data[self.brain], self._values)
            return Placed(masked=masked, matrix=np.eye(4), motion=np.zeros(6), fit=fit)
        found = self._registrar.estimate(data, affine)
        return Placed(
            masked=registration.resample(data, affine, self._points, found.matrix),
            matrix=found.matrix,
            motion=registration.rigid_parameters(found.matrix, self._registrar.centre),
            fit=found.correlation,
        )

    def aligned(
        self, data: NDArray[np.float32], affine: NDArray[np.float64], matrix: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Bring a whole volume to the reference, shape (i, j, k), for the operator to look at.

        Parameters
        ----------
        data : array of shape (i, j, k), float32
        affine : array of shape (4, 4), float64
        matrix : array of shape (4, 4), float64
            RAS mm of the reference to RAS mm of the volume.
        """
        index = np.argwhere(np.ones(self.data.shape, np.bool_))
        points = (index @ self.affine[:3, :3].T + self.affine[:3, 3]).astype(np.float32)
        data = np.where(np.isfinite(data), data, np.float32(0))
        return registration.resample(data, affine, points, matrix).reshape(self.data.shape)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def read_motion(path: Path) -> NDArray[np.float64]:
    """Read motion parameters: per volume translations in mm and rotations in radians, RAS axes.

    Returns
    -------
    array of shape (t, 6), float64

    Raises
    ------
    SettingsError
        If the file is missing or does not hold six columns of numbers; further columns are ignored.
    """
    try:
        motion = np.loadtxt(path, ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise SettingsError(
            [f"$.estimate.motion_file: expected six columns of numbers in {path}, got: {error}"]
        ) from None
    if motion.shape[1] < 6 or not np.isfinite(motion[:, :6]).all():
        raise SettingsError(
            [f"$.estimate.motion_file: expected six columns of numbers in {path}, got {motion.shape[1]}"]
        )
    if (problem := not_radians(motion[:, 3:6])) is not None:
        raise SettingsError([f"$.estimate.motion_file: {problem}: {path}"])
    return motion[:, :6]


def not_radians(rotations: NDArray[np.float64]) -> str | None:
    """Say why numbers are no rotations of a head in radians; None if they may be.

    Parameters
    ----------
    rotations : array of shape (t, 3)
    """
    largest = float(np.abs(rotations).max(initial=0.0))
    if largest <= _LARGEST_TURN:
        return None
    return (
        f"expected rotations in radians, below {_LARGEST_TURN:g} for a head, got {largest:g}: degrees, or another order"
    )
