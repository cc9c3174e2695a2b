"""Smoothing and cubic interpolation of volumes, compiled, float32.

Volumes are C-contiguous. The separable filters see a volume as rows around the filtered axis, so that one
compiled loop serves the three axes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.compiled import compiled

_POLE = math.sqrt(3.0) - 2.0
_HORIZON = 16  # |_POLE| ** 16 = 7e-10 is below float32 resolution
_FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@compiled
def _convolve(source: NDArray[np.float32], out: NDArray[np.float32], kernel: NDArray[np.float32], stride: int) -> None:
    """Convolve rows of samples that lie `stride` apart; one contiguous loop per tap."""
    outer, size = source.shape
    n = size // stride
    radius = kernel.shape[0] // 2
    for o in range(outer):
        for q in range(size):
            out[o, q] = kernel[radius] * source[o, q]
        for tap in range(1, radius + 1):
            weight = kernel[radius + tap]
            shift = min(tap, n) * stride
            for q in range(size - shift):
                out[o, q] += weight * source[o, q + shift]
                out[o, q + shift] += weight * source[o, q]
            for q in range(size - shift, size):
                out[o, q] += weight * source[o, (n - 1) * stride + q % stride]
            for q in range(shift):
                out[o, q] += weight * source[o, q % stride]


@compiled
def _prefilter(c: NDArray[np.float32]) -> None:
    """Replace samples by cubic B-spline coefficients along the middle axis (Unser 1999, box 2)."""
    outer, n, inner = c.shape
    pole = np.float32(_POLE)
    gain = np.float32(6.0)
    tail = np.float32(_POLE / (_POLE * _POLE - 1.0))
    for o in range(outer):
        for j in range(inner):
            total = c[o, 0, j]
            power = pole
            for i in range(1, _HORIZON):
                # whole-sample mirror, as scipy's mode="mirror"
                k = i % (2 * n - 2)
                if k >= n:
                    k = 2 * n - 2 - k
                total += power * c[o, k, j]
                power *= pole
            c[o, 0, j] = gain * total
        for i in range(1, n):
            for j in range(inner):
                c[o, i, j] = gain * c[o, i, j] + pole * c[o, i - 1, j]
        for j in range(inner):
            c[o, n - 1, j] = tail * (c[o, n - 1, j] + pole * c[o, n - 2, j])
        for i in range(n - 2, -1, -1):
            for j in range(inner):
                c[o, i, j] = pole * (c[o, i + 1, j] - c[o, i, j])


@compiled
def _sample(
    c: NDArray[np.float32], points: NDArray[np.float32], m: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    size = np.array(c.shape)
    weight = np.empty((3, 4), np.float32)
    index = np.empty((3, 4), np.int64)
    for p in range(points.shape[0]):
        for axis in range(3):
            x = m[axis, 0] * points[p, 0] + m[axis, 1] * points[p, 1] + m[axis, 2] * points[p, 2] + m[axis, 3]
            last = size[axis] - 1
            x = min(max(x, 0.0), float(last))
            base = int(x)
            t = np.float32(x - base)
            u = np.float32(1.0) - t
            weight[axis, 0] = u * u * u / 6.0
            weight[axis, 1] = (4.0 - 3.0 * t * t * (2.0 - t)) / 6.0
            weight[axis, 2] = (4.0 - 3.0 * u * u * (2.0 - u)) / 6.0
            weight[axis, 3] = t * t * t / 6.0
            for tap in range(4):
                k = abs(base - 1 + tap)
                if k > last:
                    k = max(2 * last - k, 0)
                index[axis, tap] = k
        total = np.float32(0.0)
        for a in range(4):
            plane = np.float32(0.0)
            for b in range(4):
                line = np.float32(0.0)
                for d in range(4):
                    line += weight[2, d] * c[index[0, a], index[1, b], index[2, d]]
                plane += weight[1, b] * line
            total += weight[0, a] * plane
        out[p] = total


def _around(volume: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = volume.shape
    return volume.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def smooth(volume: NDArray[np.float32], sigma: tuple[float, float, float]) -> NDArray[np.float32]:
    """Convolve with a Gaussian, edges extended.

    Parameters
    ----------
    volume : array of shape (i, j, k), float32
    sigma : tuple of float
        Standard deviation along each axis, voxels.

    Returns
    -------
    array of shape (i, j, k), float32
    """
    source = np.array(volume, np.float32, order="C")
    out = np.empty_like(source)
    for axis in range(3):
        if source.shape[axis] == 1 or sigma[axis] <= 0:
            continue
        radius = max(1, math.ceil(3.0 * sigma[axis]))
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[axis]) ** 2)
        stride = math.prod(source.shape[axis + 1 :])
        rows = (-1, source.shape[axis] * stride)
        _convolve(source.reshape(rows), out.reshape(rows), (taps / taps.sum()).astype(np.float32), stride)
        source, out = out, source
    return source


def sigma_voxels(fwhm_mm: float, affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the standard deviation in voxels, per axis, of a Gaussian of `fwhm_mm`."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = (fwhm_mm / _FWHM_PER_SIGMA / zooms).tolist()
    return i, j, k


def spline_coefficients(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cubic B-spline coefficients of `volume` (mirrored edges), float32 of the same shape.

    References
    ----------
    M. Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 16(6),
    1999.
    """
    coefficients = np.array(volume, np.float32, order="C")
    for axis in range(3):
        if coefficients.shape[axis] > 1:
            _prefilter(_around(coefficients, axis))
    return coefficients


def sample(
    coefficients: NDArray[np.float32], points: NDArray[np.float32], matrix: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Evaluate a cubic B-spline at transformed points; points outside take the nearest edge.

    Parameters
    ----------
    coefficients : array of shape (i, j, k), float32
        From `spline_coefficients`.
    points : array of shape (n, 3), float32
    matrix : array of shape (4, 4), float64
        Takes `points` to voxel indices of the volume.

    Returns
    -------
    array of shape (n,), float32
    """
    out = np.empty(len(points), np.float32)
    _sample(coefficients, points, matrix[:3], out)
    return out
