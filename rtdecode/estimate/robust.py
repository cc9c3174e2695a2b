"""A rigid step that neither responses nor the receive coils pull.

What the template does not explain of a volume is put down to four things: motion, a slow field over the head (the
coils' receive field and the gain), blocks of tissue whose signal has changed, and noise. The field is a quadratic
polynomial times the template, solved for together with the motion. Blocks whose mean lies far from all others' get
a gain of their own, and those that are uneven besides count less; single points that lie far off count less, too.
All three by Tukey's biweight on a scale that comes from the volume itself (P. J. Huber & E. M. Ronchetti, "Robust
Statistics", 2009, chapter 7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.compiled import compiled
from rtdecode.estimate.interpolation import inner_value

FloatArray = NDArray[np.float64]

MOTION = 6
_BLOCK_MM = 15.0
_POINT_CUT = 4.685  # robust standard deviations; 95 % efficient where the noise is normal
_BLOCK_CUT = 2.5
_FIRST_BLOCK_CUT = 3.0  # before motion and field are settled
_UNEVEN = 1.5  # in units of the usual spread within a block, above it
_NORMAL_PER_MAD = 1.4826
_FEWEST_SCALED = 1e-6  # of the template's median: what float32 leaves
_LEAST_COLUMN = 1e-3
_GAIN_ONLY_STEPS, _FIELD_STEPS = 2, 3
_WEIGHING_STEPS = 6  # after which the weights are kept: where they chase each other, there would be no end
_HESSIAN_STEPS = 3  # after which the normal matrix is formed anew: most volumes need fewer
_RIDGE = 1e-6


@compiled
def sampled(
    moving: NDArray[np.float32],
    points: NDArray[np.float32],
    m: NDArray[np.float64],
    level: float,
    out: NDArray[np.float32],
) -> None:
    """Sample `level` times a volume convolved with the cubic B-spline at transformed points, nan outside."""
    factor = np.float32(level)
    nx, ny, nz = moving.shape[0] - 2.0, moving.shape[1] - 2.0, moving.shape[2] - 2.0
    flat, rows, columns = moving.ravel(), moving.shape[1], moving.shape[2]
    for p in range(points.shape[0]):
        px, py, pz = points[p, 0], points[p, 1], points[p, 2]
        x = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]
        y = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]
        z = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
        if 1.0 <= x < nx and 1.0 <= y < ny and 1.0 <= z < nz:
            out[p] = factor * inner_value(flat, rows, columns, x, y, z)
        else:
            out[p] = np.nan


@compiled
def _block_means(
    values: NDArray[np.float32],
    template: NDArray[np.float32],
    weight: NDArray[np.float32],
    bounds: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Regress each block's difference from the template on the template: by which part of it the block differs."""
    for b in range(out.shape[0]):
        cross = square = 0.0
        for p in range(bounds[b], bounds[b + 1]):
            if not np.isnan(values[p]):
                scaled = weight[p] * template[p]
                cross += scaled * (values[p] - template[p])
                square += scaled * template[p]
        out[b] = cross / square if square > 0.0 else 0.0


@compiled
def _errors(
    values: NDArray[np.float32],
    template: NDArray[np.float32],
    columns: NDArray[np.float32],
    known: NDArray[np.float64],
    gains: NDArray[np.float64],
    bounds: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write what `known`, coefficients of the columns, and the gains of the blocks leave unexplained."""
    for b in range(gains.shape[0]):
        gain = np.float32(1.0 + gains[b])
        for p in range(bounds[b], bounds[b + 1]):
            out[p] = values[p] - gain * template[p]
    for a in range(known.shape[0]):
        factor = np.float32(known[a])
        if factor != 0.0:
            for p in range(out.shape[0]):
                out[p] -= factor * columns[a, p]


@compiled
def _spreads(
    errors: NDArray[np.float32],
    weight: NDArray[np.float32],
    cut: float,
    bounds: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Write the root mean square of each block's errors, single ones limited to `cut`."""
    for b in range(out.shape[0]):
        total = square = 0.0
        for p in range(bounds[b], bounds[b + 1]):
            if not np.isnan(errors[p]):
                limited = min(abs(errors[p]), cut)
                total += weight[p]
                square += weight[p] * limited * limited
        out[b] = np.sqrt(square / total) if total > 0.0 else 0.0


@compiled
def _weigh(
    errors: NDArray[np.float32],
    weight: NDArray[np.float32],
    cut: float,
    even: NDArray[np.float64],
    bounds: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write each point's weight: Tukey's of its error times its own and its block's."""
    for b in range(even.shape[0]):
        for p in range(bounds[b], bounds[b + 1]):
            out[p] = 0.0
            if abs(errors[p]) < cut:
                part = errors[p] / cut
                out[p] = (1.0 - part * part) ** 2 * weight[p] * even[b]


@compiled
def _sums(
    errors: NDArray[np.float32],
    template: NDArray[np.float32],
    jacobian: NDArray[np.float32],
    weight: NDArray[np.float32],
    gains: NDArray[np.float64],
    own: NDArray[np.float64],
    bounds: NDArray[np.int64],
    weighted: NDArray[np.float32],
    means: NDArray[np.float64],
    right: NDArray[np.float64],
) -> None:
    """Write the weighted columns, and add up the right side of the normal equations.

    Of a block with a gain of its own only what is around its mean counts, as far as `own` says: ``means.T @ means`` is
    to be taken away from the normal matrix.
    """
    n = jacobian.shape[1]
    for b in range(own.shape[0]):
        cross = square = 0.0
        means[b] = 0.0
        for p in range(bounds[b], bounds[b + 1]):
            w, t = weight[p], template[p]
            if w == 0.0 or np.isnan(errors[p]):
                weighted[p] = np.float32(0.0)
                continue
            residual = errors[p] + gains[b] * t
            for a in range(n):
                scaled = w * jacobian[p, a]
                weighted[p, a] = scaled
                right[a] += scaled * residual
                means[b, a] += scaled * t
            cross += w * t * residual
            square += w * t * t
        share = np.sqrt(own[b] / square) if square > 0.0 else 0.0
        for a in range(n):
            means[b, a] *= share
            right[a] -= means[b, a] * share * cross


def _biweight(distance: FloatArray, cut: float) -> FloatArray:
    """Return Tukey's weights: 1 at no distance, falling to 0 at the cut."""
    return np.asarray(np.maximum(0.0, 1.0 - (distance / cut) ** 2) ** 2)


def _deviation(values: NDArray[np.floating]) -> float:
    """Return the standard deviation about zero of the better half of the values."""
    distance, middle = np.abs(values), len(values) // 2
    return _NORMAL_PER_MAD * float(np.partition(distance, middle)[middle])


def _centred(values: FloatArray) -> FloatArray:
    return np.asarray(values - np.median(values))


def _solved(normal: FloatArray, right: FloatArray) -> FloatArray:
    """Solve normal equations that may be nearly singular."""
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-30))
    scaled = normal / np.outer(scale, scale)
    scaled[np.diag_indices(len(scale))] += _RIDGE
    return np.asarray(np.linalg.solve(scaled, right / scale) / scale)


def field_basis(points: NDArray[np.float32], weight: FloatArray) -> FloatArray:
    """Return a basis of the fields over the head: quadratic polynomials, the first one constant.

    Parameters
    ----------
    points : array of shape (n, 3), float32
    weight : array of shape (n,), float64
        Of each point, in the sense in which they are orthogonal.

    Returns
    -------
    array of shape (n, b), float64
        Fewer than ten where points lie in a plane.
    """
    arm = points - points.mean(0, dtype=np.float64)
    x, y, z = (arm / np.maximum(np.abs(arm).max(0), 1.0)).T
    powers = np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    root = np.sqrt(weight / weight.sum())[:, None]
    _, triangle = np.linalg.qr(root * powers)
    keep = np.abs(np.diag(triangle)) > _LEAST_COLUMN
    orthogonal = powers[:, keep]
    _, triangle = np.linalg.qr(root * orthogonal)
    return np.asarray(np.linalg.solve(triangle.T, orthogonal.T).T)


def blocks(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the number of the cube of `_BLOCK_MM` in which each point lies, shape (n,)."""
    cube = np.floor((points - points.min(0)) / _BLOCK_MM).astype(np.int64)
    return np.asarray(np.unique(cube, axis=0, return_inverse=True)[1].ravel(), np.int64)


class RobustStep:
    """Finds motion beside the field, the blocks and the points that differ from the template for other reasons.

    Parameters
    ----------
    template : array of shape (n,), float32
        The reference at the points, which are sorted by block.
    jacobian : array of shape (n, 6), float32
        By how much motion changes the volume there.
    field : array of shape (n, b), float64
    weight : array of shape (n,), float32
    block : array of shape (n,), int64
        Number of each point's block, ascending from 0.
    """

    def __init__(
        self,
        template: NDArray[np.float32],
        jacobian: NDArray[np.float32],
        field: FloatArray,
        weight: NDArray[np.float32],
        block: NDArray[np.int64],
    ) -> None:
        self._template, self._weight = template, weight
        columns = np.column_stack([jacobian, field * template[:, None]])
        self._jacobian = np.ascontiguousarray(columns, np.float32)
        self._columns = np.ascontiguousarray(self._jacobian.T)
        self._bounds = np.searchsorted(block, np.arange(block[-1] + 2))
        self._count = len(self._bounds) - 1
        self._own = np.zeros(self._count)
        self._point_weight = np.empty_like(template)
        scaled = weight.astype(np.float64) * template
        square = np.bincount(block, scaled * template)
        sums: FloatArray = np.stack([np.bincount(block, scaled * c) for c in columns.T.astype(np.float64)], axis=1)
        self._of_blocks = sums / np.maximum(square, 1e-30)[:, None]
        self._block_weight = np.minimum(square / np.median(square), 1.0)
        self._floor = _FEWEST_SCALED * float(np.median(template))
        self._errors = np.empty_like(template)
        self._weighted = np.empty_like(self._jacobian)
        self._known: FloatArray | None = None
        self._field = np.zeros(columns.shape[1])
        self.begin()

    def begin(self) -> None:
        """Begin with another volume; of the one before only the field is remembered, as one that it may still be."""
        if self._known is not None:
            self._field = self._known
        self._known = None
        self._steps = 0
        self._normal: FloatArray | None = None

    def __call__(self, values: NDArray[np.float32]) -> FloatArray:
        """Return the motion, shape (6,), that explains the volume best.

        Parameters
        ----------
        values : array of shape (n,), float32
            Of the volume at the points as they are now thought to lie; nan outside it.
        """
        known = self._first(self._means(values)) if self._known is None else self._known
        if self._steps < _WEIGHING_STEPS:
            gains = self._weighed(values, known)
        else:
            gains = np.zeros(self._count)
            _errors(values, self._template, self._columns, known, gains, self._bounds, self._errors)
        self._steps += 1
        right, block_sums = np.zeros(len(known)), np.empty((self._count, len(known)))
        _sums(
            self._errors,
            self._template,
            self._jacobian,
            self._point_weight,
            gains,
            self._own,
            self._bounds,
            self._weighted,
            block_sums,
            right,
        )
        if self._normal is None or self._steps % _HESSIAN_STEPS == 0:
            self._normal = (self._weighted.T @ self._jacobian).astype(np.float64) - block_sums.T @ block_sums
        found = known + _solved(self._normal, right)
        self._known = np.concatenate([np.zeros(MOTION), found[MOTION:]])
        return found[:MOTION]

    def _means(self, values: NDArray[np.float32]) -> FloatArray:
        means = np.empty(self._count)
        _block_means(values, self._template, self._weight, self._bounds, means)
        return means

    def _weighed(self, values: NDArray[np.float32], known: FloatArray) -> FloatArray:
        """Weigh points and blocks by what `known` leaves; return the blocks' gains and leave the errors beside them."""
        gains = self._means(values) - self._of_blocks @ known
        ordinary = _biweight(gains, _BLOCK_CUT * max(_deviation(gains), _FEWEST_SCALED))
        gains = (1.0 - ordinary) * gains
        errors = self._errors
        _errors(values, self._template, self._columns, known, gains, self._bounds, errors)
        some = errors[::4]
        cut = _POINT_CUT * max(_deviation(some[~np.isnan(some)]), self._floor)
        spreads = np.empty(self._count)
        _spreads(errors, self._weight, cut, self._bounds, spreads)
        usual = max(float(np.median(spreads)), self._floor)
        even = _biweight(np.maximum(spreads / usual - 1.0, 0.0), _UNEVEN)
        even += (1.0 - even) * ordinary
        _weigh(errors, self._weight, cut, even, self._bounds, self._point_weight)
        self._own = 1.0 - ordinary
        return gains

    def _first(self, means: FloatArray) -> FloatArray:
        """Fit the blocks' means alone, robustly: first with motion and gain, the rest of the field only then.

        Or the field would be bent to follow a response, and nothing would stand out any more. Begins with no field or
        that of the volume before, whatever leaves less.
        """
        base = min(
            (np.zeros_like(self._field), self._field),
            key=lambda field: _deviation(_centred(means - self._of_blocks @ field)),
        )
        means = means - self._of_blocks @ base
        known = np.zeros_like(base)
        left = _centred(means)
        for step in range(_GAIN_ONLY_STEPS + _FIELD_STEPS):
            used = MOTION + 1 if step < _GAIN_ONLY_STEPS else len(known)
            design = self._of_blocks[:, :used]
            weight = self._block_weight * _biweight(left, _FIRST_BLOCK_CUT * max(_deviation(left), _FEWEST_SCALED))
            weighted = weight[:, None] * design
            known[:used] = _solved(weighted.T @ design, means @ weighted)
            left = means - design @ known[:used]
        return base + known
