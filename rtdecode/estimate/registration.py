"""Rigid-body registration of each volume to one reference.

Inverse-compositional Gauss-Newton (Baker & Matthews, "Lucas-Kanade 20 years on", IJCV 56, 2004): gradients
and Jacobian are computed once, on the smoothed reference; each iteration only samples the smoothed volume. A
free gain absorbs changes of the overall signal.

A `matrix` takes RAS mm of the reference to RAS mm of the volume. Its six parameters are translations (mm) of,
and rotations (radians, applied x then y then z) about, the centre of the brain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.linalg import cho_factor, cho_solve

from rtdecode.estimate.compiled import compiled
from rtdecode.estimate.interpolation import inner_value, sample, sigma_voxels, smooth, spline_coefficients
from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.robust import RobustStep, blocks, field_basis, sampled

FloatArray = NDArray[np.float64]

_SPLINE_VARIANCE = 1.0 / 3.0  # of the cubic B-spline, voxels squared
_FINE_VOXELS = 2.25
_COARSE_VOXELS = 4.0
_REACH = 2.5  # of the Gaussians, standard deviations: one tap less, and both sides have the same
_FULL_SIGNAL = 0.7  # of the median: points of less signal count less, for dropout moves on its own
_DROPOUT_POWER = 2
_MAX_POINTS = 12_000
_MIN_POINTS = 200
_MAX_ITERATIONS = 20
_STOP_MM = 0.005
_NEAR_MM = 1.0  # from where on steps are robust
_SUBSET = 4
_POOR_FIT = 0.95
_LOST_FIT = 0.5
_RADIUS_MM = 50.0


@compiled
def _accumulate(
    moving: NDArray[np.float32],
    points: NDArray[np.float32],
    template: NDArray[np.float32],
    jacobian: NDArray[np.float32],
    weighted: NDArray[np.float32],
    m: NDArray[np.float64],
    normal: NDArray[np.float64],
    right: NDArray[np.float64],
) -> int:
    """Add the right sides of one iteration's normal equations, the moving volume convolved with the cubic B-spline.

    ``right[0]`` is that of the volume, ``right[1]`` that of the template; their last column gets the sums of both.
    Column 6 of `jacobian` is the template (gain). `normal` is that of all points; those outside the moving volume are
    taken away from it.
    """
    nx, ny, nz = moving.shape[0] - 2.0, moving.shape[1] - 2.0, moving.shape[2] - 2.0
    flat, rows, columns = moving.ravel(), moving.shape[1], moving.shape[2]
    used = 0
    for p in range(points.shape[0]):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        x = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]
        y = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]
        z = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
        if not (1.0 <= x < nx and 1.0 <= y < ny and 1.0 <= z < nz):
            for a in range(7):
                for b in range(a, 7):
                    normal[a, b] -= weighted[p, a] * jacobian[p, b]
            continue
        value = inner_value(flat, rows, columns, x, y, z)
        used += 1
        for a in range(7):
            right[0, a] += weighted[p, a] * value
            right[1, a] += weighted[p, a] * template[p]
        right[0, 7] += value
        right[1, 7] += template[p]
    return used


def rigid_matrix(parameters: FloatArray, centre: FloatArray) -> FloatArray:
    """Build a rigid matrix.

    Parameters
    ----------
    parameters : array of shape (6,), float64
        ``trans_x, trans_y, trans_z`` in mm and ``rot_x, rot_y, rot_z`` in radians.
    centre : array of shape (3,), float64
        Point about which the rotations turn, RAS mm.

    Returns
    -------
    array of shape (4, 4), float64
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(parameters[3:]), np.sin(parameters[3:])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = centre + parameters[:3] - matrix[:3, :3] @ centre
    return matrix


def rigid_parameters(matrix: FloatArray, centre: FloatArray) -> FloatArray:
    """Invert `rigid_matrix` (rotations about y below 90 degrees)."""
    rotation = matrix[:3, :3]
    angles = [
        math.atan2(rotation[2, 1], rotation[2, 2]),
        math.asin(min(1.0, max(-1.0, -rotation[2, 0]))),
        math.atan2(rotation[1, 0], rotation[0, 0]),
    ]
    return np.concatenate([matrix[:3, 3] + rotation @ centre - centre, angles])


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Result of a registration: rigid matrix, correlation with the reference, convergence."""

    matrix: FloatArray
    correlation: float
    converged: bool


def _length(step: FloatArray) -> float:
    """Return how far a step moves the head's rim, mm."""
    return float(np.linalg.norm(step[:3]) + _RADIUS_MM * np.linalg.norm(step[3:]))


def _correlation(values: NDArray[np.float32], template: NDArray[np.float32]) -> float:
    """Return the correlation with the template; 0 where nothing varies."""
    a, b = values - values.mean(dtype=np.float64), template - template.mean(dtype=np.float64)
    spread = float(a @ a) * float(b @ b)
    return float(a @ b) / math.sqrt(spread) if spread > 0 else 0.0


def _spline_on_grid(data: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Convolve with the cubic B-spline; return values (i, j, k) and gradient (i, j, k, 3) at the voxels."""

    def blurred(volume: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
        for axis in axes:
            volume = ndimage.convolve1d(volume, [1 / 6, 4 / 6, 1 / 6], axis, mode="nearest")
        return volume

    gradient = [
        blurred(np.gradient(data, axis=axis), tuple(other for other in range(3) if other != axis)) for axis in range(3)
    ]
    return blurred(data, (0, 1, 2)), np.stack(gradient, axis=-1)


class _Level:
    """The reference at one smoothness, with what does not change between volumes.

    Part of the smoothing is the cubic B-spline with which the volumes are sampled: unlike an interpolation, which
    distorts more the farther a point lies from the grid, it does the same everywhere.

    Least squares on some of the points come near; the rest of the way is robust and takes all points.
    """

    def __init__(self, data: NDArray[np.float32], affine: FloatArray, chosen: NDArray[np.bool_], voxels: float) -> None:
        wanted = sigma_voxels(voxels * float(np.linalg.norm(affine[:3, :3], axis=0).min()), affine)
        i, j, k = (math.sqrt(max(0.0, sigma**2 - _SPLINE_VARIANCE)) for sigma in wanted)
        self.sigma = (i, j, k)
        smoothed, gradient = _spline_on_grid(smooth(data, self.sigma, reach=_REACH))
        index = np.argwhere(chosen)
        points = (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        # A subset without pattern, the same in every process and in whatever order a file stores the voxels.
        place = np.lexsort(np.round(points, 1).T)
        keep = place[np.sort(np.random.default_rng(0).permutation(len(index))[:_MAX_POINTS])]
        index, points = index[keep], points[keep]
        block = blocks(points)
        order = np.argsort(block, kind="stable")
        at = tuple(index[order].T)
        self.points = points[order]
        self.centre = self.points.mean(0, dtype=np.float64)
        self.template = smoothed[at]
        slope = gradient[at] @ np.linalg.inv(affine[:3, :3])
        arm = self.points - self.centre
        motion = np.column_stack([slope, np.cross(arm, slope)])
        weight = np.clip(self.template / (_FULL_SIGNAL * np.median(self.template)), 0.0, 1.0) ** _DROPOUT_POWER
        columns = np.column_stack([motion, self.template])[::_SUBSET]
        self._some_points = np.ascontiguousarray(self.points[::_SUBSET])
        self._some_template = np.ascontiguousarray(self.template[::_SUBSET])
        self._jacobian = np.ascontiguousarray(columns, np.float32)
        self._weighted = np.ascontiguousarray(columns * weight[::_SUBSET, None], np.float32)
        self._normal = self._weighted.astype(np.float64).T @ self._jacobian.astype(np.float64)
        field = field_basis(self.points, weight * self.template.astype(np.float64) ** 2)
        self._robust = RobustStep(
            self.template, motion.astype(np.float32), field, weight.astype(np.float32), block[order]
        )

    def fit(self, volume: NDArray[np.float32], to_voxel: FloatArray, start: FloatArray) -> Fit:
        moving = smooth(volume, self.sigma, reach=_REACH)
        matrix, level = self._approach(moving, to_voxel, start)
        values, converged = np.empty_like(self.template), False
        self._robust.begin()
        for _ in range(_MAX_ITERATIONS):
            sampled(moving, self.points, (to_voxel @ matrix)[:3], level, values)
            if np.isnan(values).sum() > 0.75 * len(values):
                return Fit(matrix, math.nan, False)
            step = self._robust(values)
            matrix = matrix @ np.linalg.inv(rigid_matrix(step, self.centre))
            converged = _length(step) < _STOP_MM
            if converged:
                break
        seen = ~np.isnan(values)
        return Fit(matrix, _correlation(values[seen], self.template[seen]), converged)

    def _approach(
        self, moving: NDArray[np.float32], to_voxel: FloatArray, start: FloatArray
    ) -> tuple[FloatArray, float]:
        """Take steps of least squares with a free gain until they are small.

        Also returned is the factor that brings the volume to the template's level.
        """
        matrix, level = start, 0.0
        for _ in range(_MAX_ITERATIONS):
            normal, right = self._normal.copy(), np.zeros((2, 8))
            used = _accumulate(
                moving,
                self._some_points,
                self._some_template,
                self._jacobian,
                self._weighted,
                (to_voxel @ matrix)[:3],
                normal,
                right,
            )
            if used < len(self._some_points) // 4 or right[0, 7] <= 0:
                break
            level = level or right[1, 7] / right[0, 7]
            scale = np.sqrt(np.maximum(np.diag(normal), 1e-30))
            hessian = np.triu(normal) / np.outer(scale, scale)
            hessian[np.diag_indices(7)] += 1e-9
            step = cho_solve(cho_factor(hessian), (level * right[0, :7] - right[1, :7]) / scale) / scale
            if _length(step[:6]) < _NEAR_MM:
                # Not taken: it may be what a response makes least squares believe, and hide the response.
                break
            matrix = matrix @ np.linalg.inv(rigid_matrix(step[:6], self.centre))
        return matrix, level or 1.0


class Registrar:
    """Registers volumes to a reference, each starting from the last one's answer.

    Parameters
    ----------
    reference : array of shape (i, j, k)
        The head, dark around.
    affine : array of shape (4, 4), float64
        Voxel indices of the reference to RAS mm.
    exclude : array of shape (i, j, k), bool, or None
        Left out of the cost: responses to the stimuli would be taken for motion there.
    brain : array of shape (i, j, k), bool, or None
        None: as `brain_mask` finds it.

    Raises
    ------
    ValueError
        If there is too little brain to register.
    """

    def __init__(
        self,
        reference: NDArray[np.float32],
        affine: FloatArray,
        exclude: NDArray[np.bool_] | None = None,
        brain: NDArray[np.bool_] | None = None,
    ) -> None:
        self.affine = np.asarray(affine, np.float64)
        brain = brain_mask(reference) if brain is None else brain
        inner = np.zeros_like(brain)
        inner[2:-2, 2:-2, 2:-2] = True
        chosen = brain & inner
        if exclude is not None and (chosen & ~exclude).sum() >= chosen.sum() // 4:
            chosen &= ~exclude
        if chosen.sum() < _MIN_POINTS:
            raise ValueError(
                f"registration: expected {_MIN_POINTS} brain voxels two voxels from every edge, got "
                f'{chosen.sum()}; set estimate.registration to "off"'
            )
        data = np.ascontiguousarray(reference, np.float32)
        self._fine = _Level(data, self.affine, chosen, _FINE_VOXELS)
        self._coarse = _Level(data, self.affine, chosen, _COARSE_VOXELS)
        self.centre = np.argwhere(brain).mean(0) @ self.affine[:3, :3].T + self.affine[:3, 3]
        self._last = np.eye(4)

    def estimate(self, volume: NDArray[np.float32], affine: FloatArray | None = None) -> Fit:
        """Register one volume.

        Parameters
        ----------
        volume : array of shape (i, j, k), float32
        affine : array of shape (4, 4), float64, or None
            Voxel indices of the volume to RAS mm; None: that of the reference.

        Returns
        -------
        Fit
            With the correlation of the smoothed volume with the smoothed reference. If nothing
            converged, the answer for the volume before.
        """
        to_voxel = np.asarray(np.linalg.inv(self.affine if affine is None else affine), np.float64)
        volume = np.ascontiguousarray(volume, np.float32)
        fit = self._fine.fit(volume, to_voxel, self._last)
        if not (fit.converged and fit.correlation > _POOR_FIT):
            fit = self._recover(volume, to_voxel, fit)
        if not (fit.converged and fit.correlation > _LOST_FIT):
            return Fit(self._last, fit.correlation, False)
        self._last = fit.matrix
        return fit

    def _recover(self, volume: NDArray[np.float32], to_voxel: FloatArray, first: Fit) -> Fit:
        """Start again from a smoother pair of volumes and take the best answer."""
        best = first
        for start in (self._last, np.eye(4), self._centred(volume, to_voxel)):
            coarse = self._coarse.fit(volume, to_voxel, start)
            fit = self._fine.fit(volume, to_voxel, coarse.matrix)
            if fit.converged and not (best.converged and best.correlation >= fit.correlation):
                best = fit
        return best

    def _centred(self, volume: NDArray[np.float32], to_voxel: FloatArray) -> FloatArray:
        """Return the translation that brings the centres of brightness together: for a head in another position."""
        start = np.eye(4)
        try:
            brain = brain_mask(volume)
        except ValueError:
            return start
        centre = np.argwhere(brain).mean(0)
        start[:3, 3] = (np.linalg.inv(to_voxel) @ [*centre, 1.0])[:3] - self.centre
        return start


def resample(
    volume: NDArray[np.float32],
    affine: FloatArray,
    points_mm: NDArray[np.float32],
    matrix: FloatArray,
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Sample a volume, once, with a cubic B-spline at points of the reference.

    Parameters
    ----------
    volume : array of shape (i, j, k), float32
    affine : array of shape (4, 4), float64
        Voxel indices of the volume to RAS mm.
    points_mm : array of shape (n, 3), float32
        RAS mm of the reference.
    matrix : array of shape (4, 4), float64
        RAS mm of the reference to RAS mm of the volume.
    threads : int
        See `sample`.

    Returns
    -------
    array of shape (n,), float32
    """
    return sample(spline_coefficients(volume), points_mm, np.linalg.inv(affine) @ matrix, threads=threads)


def warm_up() -> None:
    """Compile everything, so that the first volume is not slow."""
    ramp = np.linspace(-1.0, 1.0, 24)
    distance = np.sqrt(ramp[:, None, None] ** 2 + ramp[:, None] ** 2 + ramp**2)
    ball = (1000.0 * (distance < 0.8)).astype(np.float32)
    registrar = Registrar(ball, np.eye(4))
    fit = registrar.estimate(ball)
    resample(ball, np.eye(4), np.zeros((8, 3), np.float32), fit.matrix)
