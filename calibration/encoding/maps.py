"""How each voxel answers to picture features: Bayesian linear maps in closed form, all voxels at once.

A response is ``y_v = w_v' phi + e`` with ``w_v ~ N(B_v, s_v T)`` and noise of its own variance. One decomposition of
the features serves every voxel and every ``s_v``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SCALES = np.concatenate([[0.0], np.logspace(-3, 1, 13)])
"""Values of ``s_v`` that are compared: variance that pictures make, in units of the variance of the noise."""
TRUSTS = (0.0, 1.0, 2.0)
"""Factors of a prior mean that are averaged over: a voxel may answer as others' did there, more strongly, or not. An
average of people is weaker than each of them, as fits shrink and places do not match: 1 to 1.6 fit simulated people."""
_COMMON_ROUNDS = 100
_ENOUGH_VOXELS = 1000
_BLOCK = 4096  # voxels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapPrior:
    """What is known of the maps before any trial.

    Attributes
    ----------
    covariance : ndarray of shape (k, k)
        T, of the weights of a voxel with ``s_v = 1``; positive definite.
    mean : ndarray of shape (k, v), float32, or None
        B; None: zero.
    constant : ndarray of shape (v,), float32, or None
        Response to the average picture; None: zero.
    constant_variance : float
        Of the true one around it; infinite: nothing is known of it.
    """

    covariance: Float64
    mean: Float32 | None = None
    constant: Float32 | None = None
    constant_variance: float = np.inf

    def of(self, voxels: NDArray[np.int64]) -> MapPrior:
        """Return that of some voxels only."""
        return replace(
            self,
            mean=None if self.mean is None else self.mean[:, voxels],
            constant=None if self.constant is None else self.constant[voxels],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maps:
    """Maps after some trials.

    Attributes
    ----------
    weights : ndarray of shape (k, v), float32
        Posterior mean.
    constant : ndarray of shape (v,), float32
        Response to the average picture.
    residuals : ndarray of shape (n, v), float32
        Of each trial under maps learned without it: noise, and what is not known of the maps.
    unknown : ndarray of shape (v,), float32
        Variance of the response to a picture that comes of what is not known of the maps.
    """

    weights: Float32
    constant: Float32
    residuals: Float32
    unknown: Float32


def fit_maps(features: Float64, responses: Float32, prior: MapPrior, rest: Float32 | None = None) -> Maps:
    """Learn the maps.

    Each voxel averages over `SCALES`, weighted by its marginal likelihood under each and by how often each is right in
    all voxels (empirical Bayes).

    Parameters
    ----------
    features : ndarray of shape (n, k)
    responses : ndarray of shape (n, v), float32
    prior : MapPrior
    rest : ndarray of shape (m, v), float32, or None
        Responses where nothing was shown, of mean 0: they tell each voxel's noise.
    """
    n, n_voxels = responses.shape
    found = _Evidence(features, responses, prior, rest)
    weights = np.empty((features.shape[1], n_voxels), np.float32)
    residuals = np.empty((n, n_voxels), np.float32)
    unknown = np.empty(n_voxels, np.float32)
    for block in found.blocks:
        average = found.average(block)
        weights[:, block], residuals[:, block] = found.weights(block, average), found.residuals(block, average)
        unknown[block] = average.unknown
    constant = np.zeros(n_voxels, np.float32)
    if n:
        constant += responses.mean(0) - features.mean(0).astype(np.float32) @ weights
    if prior.constant is not None:
        constant = prior.constant + np.float32(found.space.trust) * (constant - prior.constant if n else constant)
    elif np.isfinite(prior.constant_variance):
        constant *= np.float32(found.space.trust)
    return Maps(weights=weights, constant=constant, residuals=residuals, unknown=unknown)


def map_lengths(features: Float64, responses: Float32, prior: MapPrior, rest: Float32 | None = None) -> Float64:
    """Squared length (v,) of the weights that `fit_maps` would find: how strongly each voxel answers to pictures."""
    found = _Evidence(features, responses, prior, rest)
    lengths = np.empty(responses.shape[1])
    for block in found.blocks:
        lengths[block] = np.square(found.weights(block, found.average(block))).sum(0, dtype=np.float64)
    return lengths


class _Evidence:
    """What the responses say of each voxel's ``s_v``, and of how far to trust the prior mean."""

    def __init__(self, features: Float64, responses: Float32, prior: MapPrior, rest: Float32 | None) -> None:
        n, n_voxels = responses.shape
        silent = np.zeros(n_voxels) if rest is None else np.square(rest).sum(0, dtype=np.float64)
        self.responses, self.constant, self.mean = responses, prior.constant, prior.mean
        self.space = _space(features, prior)
        self.blocks = [slice(start, min(start + _BLOCK, n_voxels)) for start in range(0, n_voxels, _BLOCK)]
        self.expected = None if prior.mean is None else self.space.back.astype(np.float32) @ prior.mean
        self.trusts = (0.0,) if prior.mean is None else TRUSTS
        self.products = {trust: np.empty((len(self.space.powers), n_voxels), np.float32) for trust in self.trusts}
        self.likelihood = np.empty((len(self.trusts) * len(SCALES), n_voxels))
        self._trace = float(np.trace(prior.covariance))
        powers = self.space.powers.astype(np.float32)[:, None]
        for block in self.blocks:
            along, length = self.space.told(responses[:, block], self._constant(block))
            for place, trust in enumerate(self.trusts):
                told = place * len(SCALES)
                products, total = along, length + silent[block]
                if trust and self.expected is not None:
                    taken = np.float32(trust) * self.expected[:, block]
                    products = along - powers * taken
                    total = total - np.einsum("rv,rv->v", along + products, taken, dtype=np.float64)
                self.products[trust][:, block] = products
                self.likelihood[told : told + len(SCALES), block] = _likelihood(
                    np.square(products, dtype=np.float64),
                    total,
                    self.space.powers,
                    n if rest is None else n + len(rest),
                )
        self.share = _shares(self.likelihood)

    def average(self, block: slice) -> _Average:
        """Average over trusts and scales, for some voxels."""
        gain = _gains(self.space.powers)
        left = SCALES * (self._trace - gain @ (np.square(self.space.projection).sum(0) * self.space.powers))
        shares = self.share[:, block].reshape(len(self.trusts), len(SCALES), -1)
        gains = [gain.T @ share for share in shares]
        return _Average(
            gains=np.sum(gains, axis=0),
            coefficients=np.sum(
                [
                    one.astype(np.float32) * self.products[trust][:, block]
                    for trust, one in zip(self.trusts, gains, strict=True)
                ],
                axis=0,
            ),
            trusted=(np.array(self.trusts) @ shares.sum(1)).astype(np.float32),
            unknown=left @ shares.sum(0),
        )

    def weights(self, block: slice, average: _Average) -> Float32:
        """Posterior mean (k, v) of some voxels."""
        weights = self.space.projection.astype(np.float32) @ average.coefficients
        return weights if self.mean is None else weights + average.trusted * self.mean[:, block]

    def residuals(self, block: slice, average: _Average) -> Float32:
        """Residuals (n, v) of some voxels, each trial under maps learned without it."""
        along = average.coefficients
        if self.expected is not None:
            along = along + average.trusted * self.expected[:, block]
        return self.space.left_out(self.responses[:, block] - self._constant(block), along, average.gains)

    def _constant(self, block: slice) -> Float32 | np.float32:
        return np.float32(0) if self.constant is None else self.constant[block]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Average:
    """Average of some voxels over what is compared.

    Attributes
    ----------
    gains : ndarray of shape (r, v)
        Of each axis.
    coefficients : ndarray of shape (r, v), float32
        Weights along the axes, beside those of the prior mean.
    trusted : ndarray of shape (v,), float32
        Factor of the prior mean.
    unknown : ndarray of shape (v,)
        See `Maps`.
    """

    gains: Float64
    coefficients: Float32
    trusted: Float32
    unknown: Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Space:
    """Features in the axes in which prior and data are diagonal both.

    Attributes
    ----------
    along : ndarray of shape (n, r), float32
        Features, after `whitened`; orthogonal columns.
    powers : ndarray of shape (r,)
        Their squared lengths.
    projection : ndarray of shape (k, r)
        From coefficients of these to weights.
    back : ndarray of shape (r, k)
        From weights to coefficients.
    trust : float
        How far the constant follows the data: 1 where nothing is known of it beforehand.
    """

    along: Float32
    powers: Float64
    projection: Float64
    back: Float64
    trust: float

    def whitened(self, responses: Float32) -> Float32:
        """Responses (n, v) after the variance of the constant is taken out."""
        if not len(responses):
            return responses
        return np.asarray(responses - np.float32(1 - np.sqrt(1 - self.trust)) * responses.mean(0))

    def told(self, responses: Float32, constant: Float32 | np.float32) -> tuple[Float32, Float64]:
        """Products (r, v) of features with responses (n, v) less a constant, and squared lengths (v,), all whitened."""
        n, n_voxels = responses.shape
        if not n:
            return np.zeros((len(self.powers), n_voxels), np.float32), np.zeros(n_voxels)
        axes = self.whitened(self.along)
        mean = responses.mean(0)
        length = np.einsum("nv,nv->v", responses, responses, dtype=np.float64) - n * np.square(mean, dtype=np.float64)
        length += (1 - self.trust) * n * np.square(mean - constant, dtype=np.float64)
        return axes.T @ responses - axes.sum(0)[:, None] * constant, length

    def left_out(self, responses: Float32, coefficients: Float32, gains: Float64) -> Float32:
        """Residuals (n, v) of each trial under a fit without it.

        `responses` (n, v) are less the constant, `coefficients` (r, v) those of the whole fit, and `gains` (r, v) how
        far they follow the responses.
        """
        if not len(responses):
            return responses
        inner = self.whitened(self.whitened(responses) - self.along @ coefficients)
        own = self.whitened(self.along)
        diagonal = (1 - self.trust / len(own)) - np.square(own) @ gains.astype(np.float32)
        return np.asarray(inner / np.maximum(diagonal, 1e-3), np.float32)


def _space(features: Float64, prior: MapPrior) -> _Space:
    n = len(features)
    trust = (
        1.0 if np.isinf(prior.constant_variance) else n * prior.constant_variance / (1 + n * prior.constant_variance)
    )
    root = np.linalg.cholesky(prior.covariance)
    white = features - (1 - np.sqrt(1 - trust)) * features.mean(0) if n else features
    _, strengths, axes = np.linalg.svd(white @ root, full_matrices=False)
    projection = root @ axes.T
    return _Space(
        along=(white @ projection).astype(np.float32),
        powers=strengths**2,
        projection=projection,
        back=linalg.solve_triangular(root, axes.T, trans="T", lower=True).T,
        trust=trust,
    )


def _gains(powers: Float64) -> Float64:
    """Coefficient along each axis, as a factor of its product with the responses, at each scale: (scales, r)."""
    return np.asarray(SCALES[:, None] / (1 + SCALES[:, None] * powers))


def _likelihood(squares: Float64, total: Float64, powers: Float64, n: int) -> Float64:
    """Log marginal likelihood (scales, v) of responses whose noise variance is profiled out.

    Parameters
    ----------
    squares : ndarray of shape (r, v)
        Squared products of the responses with each axis.
    total : ndarray of shape (v,)
        Squared length of the responses, and of what else tells the noise.
    powers : ndarray of shape (r,)
    n : int
        Of how many responses this is the length.
    """
    left = total - _gains(powers) @ squares
    growth = np.log(1 + SCALES[:, None] * powers).sum(1)
    return np.asarray(-0.5 * (growth[:, None] + n * np.log(np.maximum(left, 1e-30))))


def _shares(likelihood: Float64) -> Float64:
    """Weight (options, v) of each option in each voxel, from log-likelihoods (options, v).

    How often each is right is found by expectation-maximisation in every so many voxels.
    """
    relative = np.exp(likelihood - likelihood.max(0))
    seen = np.ascontiguousarray(relative[:, :: max(1, relative.shape[1] // _ENOUGH_VOXELS)])
    common = np.full((len(seen), 1), 1 / len(seen))
    for _ in range(_COMMON_ROUNDS):
        common = common * (seen / (common.T @ seen)).mean(1, keepdims=True)
    share = common * relative
    return np.asarray(share / share.sum(0))
