"""Smoothing and cubic interpolation of volumes, compiled, float32.

Volumes are C-contiguous. The separable filters see a volume as rows around the filtered axis, so that one
compiled loop serves the three axes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.compiled import compiled

_POLE = math.sqrt(3.0) - 2.0
_BLOCK = 2048  # samples
_ABREAST = 32  # rows
_HORIZON = 16  # |_POLE| ** 16 = 7e-10 is below float32 resolution
_FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@compiled
def _convolve(source: NDArray[np.float32], out: NDArray[np.float32], kernel: NDArray[np.float32], stride: int) -> None:
    """Convolve rows of samples that lie `stride` apart, in blocks that stay in the cache while the taps are added."""
    outer, size = source.shape
    n = size // stride
    radius = kernel.shape[0] // 2
    for o in range(outer):
        row, to = source[o], out[o]
        for start in range(radius * stride, size - radius * stride, _BLOCK):
            stop = min(start + _BLOCK, size - radius * stride)
            part = to[start:stop]
            middle = row[start:stop]
            for q in range(part.shape[0]):
                part[q] = kernel[radius] * middle[q]
            for tap in range(1, radius + 1):
                weight = kernel[radius + tap]
                before, after = row[start - tap * stride : stop], row[start + tap * stride : stop + tap * stride]
                for q in range(part.shape[0]):
                    part[q] += weight * (before[q] + after[q])
        for i in range(n):
            if radius <= i < n - radius:
                continue
            for r in range(stride):
                total = kernel[radius] * row[i * stride + r]
                for tap in range(1, radius + 1):
                    before_edge, after_edge = max(i - tap, 0), min(i + tap, n - 1)
                    total += kernel[radius + tap] * (row[before_edge * stride + r] + row[after_edge * stride + r])
                to[i * stride + r] = total


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
def _prefilter_rows(c: NDArray[np.float32]) -> None:
    """Do `_prefilter` along the last of two axes, some rows abreast: a row alone waits for each of its sums."""
    rows, n = c.shape
    turned = np.empty((1, n, _ABREAST), np.float32)
    for start in range(0, rows, _ABREAST):
        count = min(_ABREAST, rows - start)
        for r in range(count):
            for i in range(n):
                turned[0, i, r] = c[start + r, i]
        _prefilter(turned[:, :, :count])
        for r in range(count):
            for i in range(n):
                c[start + r, i] = turned[0, i, r]


@compiled
def inner_value(flat: NDArray[np.float32], rows: int, columns: int, x: float, y: float, z: float) -> np.float32:
    """Evaluate a cubic B-spline at voxel indices whose 64 knots all lie inside the volume.

    Parameters
    ----------
    flat : array of shape (n * rows * columns,), float32
        Coefficients of shape (n, rows, columns), raveled.
    x, y, z : float
        Voxel indices.
    """
    i, j, k = int(x), int(y), int(z)
    one, two, three, four = np.float32(1.0), np.float32(2.0), np.float32(3.0), np.float32(4.0)
    t = np.float32(x - i)
    u = one - t
    x0, x1, x2, x3 = u * u * u, four - three * t * t * (two - t), four - three * u * u * (two - u), t * t * t
    t = np.float32(y - j)
    u = one - t
    y0, y1, y2, y3 = u * u * u, four - three * t * t * (two - t), four - three * u * u * (two - u), t * t * t
    t = np.float32(z - k)
    u = one - t
    z0, z1, z2, z3 = u * u * u, four - three * t * t * (two - t), four - three * u * u * (two - u), t * t * t
    # unsigned: a signed index could be negative, and each access would test for it
    plane, line = np.uint64(rows * columns), np.uint64(columns)
    start = np.uint64(((i - 1) * rows + j - 1) * columns + k - 1)
    s0 = s1 = s2 = s3 = np.float32(0.0)
    for a in range(4):
        wx = x0 if a == 0 else x1 if a == 1 else x2 if a == 2 else x3
        at_plane = start + np.uint64(a) * plane
        p0 = p1 = p2 = p3 = np.float32(0.0)
        for b in range(4):
            wy = y0 if b == 0 else y1 if b == 1 else y2 if b == 2 else y3
            at = at_plane + np.uint64(b) * line
            p0 += wy * flat[at]
            p1 += wy * flat[at + np.uint64(1)]
            p2 += wy * flat[at + np.uint64(2)]
            p3 += wy * flat[at + np.uint64(3)]
        s0 += wx * p0
        s1 += wx * p1
        s2 += wx * p2
        s3 += wx * p3
    return ((z0 * s0 + z1 * s1) + (z2 * s2 + z3 * s3)) * np.float32(1.0 / 216.0)


@compiled
def _padded(c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mirror one knot before and two after each axis, so that every point inside has its 64."""
    nx, ny, nz = c.shape
    out = np.empty((nx + 3, ny + 3, nz + 3), np.float32)
    for i in range(nx + 3):
        p = min(max(min(abs(i - 1), 2 * (nx - 1) - (i - 1)), 0), nx - 1)
        for j in range(ny + 3):
            q = min(max(min(abs(j - 1), 2 * (ny - 1) - (j - 1)), 0), ny - 1)
            for k in range(nz):
                out[i, j, k + 1] = c[p, q, k]
            for k in (0, nz + 1, nz + 2):
                r = min(max(min(abs(k - 1), 2 * (nz - 1) - (k - 1)), 0), nz - 1)
                out[i, j, k] = c[p, q, r]
    return out


@compiled
def _sample(
    padded: NDArray[np.float32], points: NDArray[np.float32], m: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    flat = padded.ravel()
    rows, columns = padded.shape[1], padded.shape[2]
    last_x, last_y, last_z = padded.shape[0] - 4.0, padded.shape[1] - 4.0, padded.shape[2] - 4.0
    for p in range(points.shape[0]):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        x = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]
        y = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]
        z = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
        x = min(max(x, 0.0), last_x) + 1.0
        y = min(max(y, 0.0), last_y) + 1.0
        z = min(max(z, 0.0), last_z) + 1.0
        out[p] = inner_value(flat, rows, columns, x, y, z)


def _around(volume: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = volume.shape
    return volume.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def smooth(
    volume: NDArray[np.float32], sigma: tuple[float, float, float], *, reach: float = 3.0
) -> NDArray[np.float32]:
    """Convolve with a Gaussian, edges extended.

    Parameters
    ----------
    volume : array of shape (i, j, k), float32
    sigma : tuple of float
        Standard deviation along each axis, voxels.
    reach : float
        Standard deviations beyond which the Gaussian is cut off.

    Returns
    -------
    array of shape (i, j, k), float32
    """
    source = np.array(volume, np.float32, order="C")
    out = np.empty_like(source)
    for axis in range(3):
        if source.shape[axis] == 1 or sigma[axis] <= 0:
            continue
        radius = max(1, math.ceil(reach * sigma[axis]))
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
        if coefficients.shape[axis] == 1:
            continue
        if axis == 2:
            _prefilter_rows(coefficients.reshape(-1, coefficients.shape[2]))
        else:
            _prefilter(_around(coefficients, axis))
    return coefficients


def sample(
    coefficients: NDArray[np.float32],
    points: NDArray[np.float32],
    matrix: NDArray[np.float64],
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Evaluate a cubic B-spline at transformed points; points outside take the nearest edge.

    Parameters
    ----------
    coefficients : array of shape (i, j, k), float32
        From `spline_coefficients`.
    points : array of shape (n, 3), float32
    matrix : array of shape (4, 4), float64
        Takes `points` to voxel indices of the volume.
    threads : int
        Share the points between; the values do not depend on it.

    Returns
    -------
    array of shape (n,), float32
    """
    out = np.empty(len(points), np.float32)
    padded = _padded(coefficients)
    if threads == 1:
        _sample(padded, points, matrix[:3], out)
        return out
    with ThreadPoolExecutor(threads) as pool:
        shares = zip(np.array_split(points, threads), np.array_split(out, threads), strict=True)
        for future in [pool.submit(_sample, padded, share, matrix[:3], part) for share, part in shares]:
            future.result()
    return out
