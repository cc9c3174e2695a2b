"""The compiled inner loops of the scanner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.compiled import compiled


@compiled
def _cubic(f: float, weights: NDArray[np.float32]) -> None:
    """Weights of the cubic B-spline at the four knots around a point `f` past the second."""
    g = np.float32(f)
    one = np.float32(1.0)
    sixth = np.float32(1.0 / 6.0)
    weights[0] = (one - g) ** 3 * sixth
    weights[1] = np.float32(2.0 / 3.0) - g * g + g * g * g * np.float32(0.5)
    weights[3] = g * g * g * sixth
    weights[2] = one - weights[0] - weights[1] - weights[3]


@compiled
def _spline(
    coefficients: NDArray[np.float32],
    x: float,
    y: float,
    z: float,
    wx: NDArray[np.float32],
    wy: NDArray[np.float32],
    wz: NDArray[np.float32],
) -> float:
    """Value of a cubic spline at a point in index units; 0 outside."""
    ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    nx, ny, nz = coefficients.shape
    if ix < 1 or iy < 1 or iz < 1 or ix + 2 >= nx or iy + 2 >= ny or iz + 2 >= nz:
        return 0.0
    _cubic(x - ix, wx)
    _cubic(y - iy, wy)
    _cubic(z - iz, wz)
    total = np.float32(0.0)
    for a in range(4):
        plane = np.float32(0.0)
        for b in range(4):
            line = np.float32(0.0)
            for c in range(4):
                line += wz[c] * coefficients[ix - 1 + a, iy - 1 + b, iz - 1 + c]
            plane += wy[b] * line
        total += wx[a] * plane
    return float(total)


@compiled
def sample(
    coefficients: NDArray[np.float32], to_head: NDArray[np.float64], voxels: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Sample spline coefficients at voxels.

    Parameters
    ----------
    coefficients : array of shape (x, y, z), float32
    to_head : array of shape (4, 4)
        Voxel indices to indices of the coefficients.
    voxels : array of shape (n, 3)

    Returns
    -------
    array of shape (n,), float32
    """
    wx, wy, wz = np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
    out = np.empty(len(voxels), np.float32)
    for n in range(len(voxels)):
        i, j, k = float(voxels[n, 0]), float(voxels[n, 1]), float(voxels[n, 2])
        x = to_head[0, 0] * i + to_head[0, 1] * j + to_head[0, 2] * k + to_head[0, 3]
        y = to_head[1, 0] * i + to_head[1, 1] * j + to_head[1, 2] * k + to_head[1, 3]
        z = to_head[2, 0] * i + to_head[2, 1] * j + to_head[2, 2] * k + to_head[2, 3]
        out[n] = max(_spline(coefficients, x, y, z, wx, wy, wz), 0.0)
    return out


@compiled
def _response(nodes: NDArray[np.int32], slice_response: NDArray[np.float32], x: float, y: float, z: float) -> float:
    """Trilinear interpolation between responsive voxels at a point of the grid at rest."""
    ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    nx, ny, nz = nodes.shape
    fx, fy, fz = x - ix, y - iy, z - iz
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                p, q, r = ix + a, iy + b, iz + c
                if 0 <= p < nx and 0 <= q < ny and 0 <= r < nz and nodes[p, q, r] >= 0:
                    weight = (fx if a else 1 - fx) * (fy if b else 1 - fy) * (fz if c else 1 - fz)
                    total += weight * slice_response[nodes[p, q, r]]
    return total


@compiled
def volume(
    coefficients: NDArray[np.float32],
    to_head: NDArray[np.float64],
    to_rest: NDArray[np.float64],
    active: NDArray[np.int32],
    responds: NDArray[np.bool_],
    nodes: NDArray[np.int32],
    response: NDArray[np.float32],
    maps: NDArray[np.float32],
    waves: NDArray[np.float32],
    state: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Render one volume without thermal noise.

    Parameters
    ----------
    coefficients : array of shape (x, y, z), float32
        Cubic spline coefficients of the head at rest.
    to_head, to_rest : array of shape (4, 4)
        Voxel indices to indices of the coefficients, and to voxel indices of the head at rest.
    active : array of shape (n, 3), int32
        Voxels that the head may reach.
    responds : array of shape (n,), bool
        Whether responsive voxels may reach each of them.
    nodes : array of shape (i, j, k), int32
        Number of the responsive voxel, -1 elsewhere.
    response : array of shape (k, n_responsive), float32
        Percent signal change when each slice is acquired.
    maps : array of shape (n, w), float32
    waves : array of shape (k, w), float32
        Slow noise is the product of both, percent.
    state : array of shape (n,), float32
        Further noise, percent.

    Returns
    -------
    array of shape (i, j, k), float32
    """
    wx, wy, wz = np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
    out = np.zeros(nodes.shape, np.float32)
    for n in range(len(active)):
        i, j, k = active[n, 0], active[n, 1], active[n, 2]
        x = to_head[0, 0] * i + to_head[0, 1] * j + to_head[0, 2] * k + to_head[0, 3]
        y = to_head[1, 0] * i + to_head[1, 1] * j + to_head[1, 2] * k + to_head[1, 3]
        z = to_head[2, 0] * i + to_head[2, 1] * j + to_head[2, 2] * k + to_head[2, 3]
        signal = _spline(coefficients, x, y, z, wx, wy, wz)
        if signal <= 0:
            continue
        change = state[n]
        for w in range(maps.shape[1]):
            change += maps[n, w] * waves[k, w]
        if responds[n]:
            p = to_rest[0, 0] * i + to_rest[0, 1] * j + to_rest[0, 2] * k + to_rest[0, 3]
            q = to_rest[1, 0] * i + to_rest[1, 1] * j + to_rest[1, 2] * k + to_rest[1, 3]
            r = to_rest[2, 0] * i + to_rest[2, 1] * j + to_rest[2, 2] * k + to_rest[2, 3]
            change += _response(nodes, response[k], p, q, r)
        out[i, j, k] = signal * (1 + change / 100)
    return out


@compiled
def store(clean: NDArray[np.float32], noise: NDArray[np.float32], sigma: float, largest: int) -> NDArray[np.uint16]:
    """Return the magnitude of a complex signal with noise (a Rician variable), rounded and clipped.

    Parameters
    ----------
    clean : array of shape (i, j, k), float32
    noise : array of shape (2, i, j, k), float32
        Standard normal, real and imaginary part.
    sigma : float
        Standard deviation of each part.
    largest : int
        Largest value that can be stored.
    """
    out = np.empty(clean.shape, np.uint16)
    flat, real, imaginary, signal = out.ravel(), noise[0].ravel(), noise[1].ravel(), clean.ravel()
    for n in range(flat.size):
        magnitude = np.sqrt((signal[n] + sigma * real[n]) ** 2 + (sigma * imaginary[n]) ** 2)
        flat[n] = int(min(magnitude + 0.5, largest))
    return out
