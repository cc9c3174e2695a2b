"""A participant's encoding model, turned round: what a beta says of pictures, categories and itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from rtdecode.decode.score.adapter import components_of
from rtdecode.decode.score.content import Part, content, group_of, parts_of, penalty
from rtdecode.decode.score.from_tensors import from_tensors
from rtdecode.errors import EngineError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What one beta says, without the pictures that it may be compared with.

    Attributes
    ----------
    components : ndarray of shape (k,), float64
        Linear part of the log-likelihood of the components of a picture.
    pictures : ndarray of shape (p,), float64
        Log-likelihood of each picture that calibration showed.
    categories : ndarray of shape (c,), float64
        Log-likelihood of each category by the linear heads.
    distance : float
        ``z' S^-1 z`` a voxel; see `EncodingModel.own_noise`.
    signal : float or None
        How far it lies from rest toward the average response; None where calibration had no rest.
    """

    components: Float64
    pictures: Float64
    categories: Float64
    distance: float
    signal: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodingModel:
    """Tensors of ``encoding.safetensors``.

    A response ``y``, standardised, of a picture with components ``z`` is taken for ``mean + M' z`` and noise of
    covariance S: low rank and diagonal.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Places in the mask's vector of the voxels used, the most responsive first.
    centre, scale : ndarray of shape (s,), float32
        Of the calibration betas, percent signal change.
    mean : ndarray of shape (s,), float32
        Response to the average picture, of standardised betas.
    projection : ndarray of shape (k, s), float32
        ``M S^-1``, tempered.
    information : ndarray of shape (k, k), float32
        ``M S^-1 M'``, tempered.
    basis : ndarray of shape (k, n), float32
        Components to flattened tokens; orthogonal rows.
    token_mean : ndarray of shape (n,), float32
        Of the calibration stimuli, flattened.
    pictures : ndarray of shape (p, k), float32
        Components of the pictures that calibration showed.
    picture_category : ndarray of shape (p,), int64
        Of each of these, its place among the categories.
    own_noise : ndarray of shape (r,), float32
        Diagonal of S, of the first `r` voxels.
    near : ndarray of shape (1,), float32
        How far from the pictures of calibration content looks for one: see `content`.
    noise_range : ndarray of shape (2,), float32
        Least and most of `Reading.distance` that content allows for; both 1 where it does not look at it.
    whitener : ndarray of shape (q, r), float32
        W of ``S^-1 = diag(1 / own_noise) - W' W``.
    signal_weights : ndarray of shape (r,), float32
        From rest to the average response; empty where calibration had no rest.
    category_weights : ndarray of shape (c, s), float32
        Linear heads, which are added to what the encoding model says of categories.
    category_intercept : ndarray of shape (c,), float32
        What they say of the average response.
    encoder_weight : ndarray of shape (1,), float32
        Factor of the latter.
    """

    voxels: NDArray[np.int64]
    centre: Float32
    scale: Float32
    mean: Float32
    projection: Float32
    information: Float32
    basis: Float32
    token_mean: Float32
    pictures: Float32
    picture_category: NDArray[np.int64]
    own_noise: Float32
    near: Float32
    noise_range: Float32
    whitener: Float32
    signal_weights: Float32
    category_weights: Float32
    category_intercept: Float32
    encoder_weight: Float32

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def describe(self, tokens: NDArray[Any]) -> Float64:
        """Components (n, k) of pictures with tokens (n, t, d)."""
        return components_of(tokens, self.basis, self.token_mean)

    def read(self, beta: Float32) -> Reading:
        """Read a beta (v,) of the mask; a voxel without an estimate counts as its mean.

        Raises
        ------
        EngineError
            Fewer than half of the voxels have an estimate.
        """
        values = (beta[self.voxels].astype(np.float32) - self.centre) / self.scale
        known = np.isfinite(values)
        if 2 * known.sum() < len(values):
            raise EngineError(
                f"expected an estimate in at least half of the decoder's {len(values)} voxels, got {known.sum()}"
            )
        standard = np.where(known, values, np.float32(0))
        own = standard[: len(self.own_noise)]
        spread = np.square(own / np.sqrt(self.own_noise)).sum(dtype=np.float64)
        spread -= np.square(self.whitener @ own).sum(dtype=np.float64)
        components = (self.projection @ (standard - self.mean)).astype(np.float64)
        return Reading(
            components=components,
            pictures=self._likelihood(components, self.pictures),
            categories=(self.category_weights @ standard + self.category_intercept).astype(np.float64),
            distance=float(spread / len(own)),
            signal=float(own @ self.signal_weights) if len(self.signal_weights) else None,
        )

    def pictures_of(self, reading: Reading, components: Float64) -> Float64:
        """Log-likelihood (n,), up to a constant, of pictures with components (n, k)."""
        return self._likelihood(reading.components, components)

    def categories_of(self, reading: Reading, shown: int = 1) -> Float64:
        """Log-likelihood (c,) of each category: of its calibration pictures, and by the linear heads.

        Parameters
        ----------
        reading : Reading
        shown : int
            Trials that the beta is the mean of: with noise of their own, their log-likelihoods add up.
        """
        pictures, heads = shown * reading.pictures, shown * reading.categories
        by_category = mean_likelihood(pictures[None], self.picture_category, len(heads))[0]
        return np.asarray(float(self.encoder_weight[0]) * by_category + heads)

    def content_of(self, reading: Reading, part: Part | None = None) -> float:
        """How much likelier the beta is with a picture of calibration, or like one, than with the average one, in nats.

        Runs differ in noise, and what it says of pictures grows with it: it is divided by how strong the beta's own is.

        Parameters
        ----------
        reading : Reading
        part : Part or None
            Ask for some components of the pictures only.
        """
        noise, near = np.sqrt(np.clip(reading.distance, *self.noise_range)), float(self.near[0])
        pictures, information = self.pictures.astype(np.float64), self.information.astype(np.float64)
        return float(content(reading.components[None] / noise, pictures, information, part, near=near)[0])

    def parts(self, groups: Sequence[slice]) -> list[Part]:
        """Return the parts that the token groups are, given as slices of the flattened tokens."""
        return parts_of(self.information.astype(np.float64), group_of(self.basis, groups), len(groups))

    def _likelihood(self, told: Float64, components: NDArray[np.floating[Any]]) -> Float64:
        pictures = components.astype(np.float64)
        return np.asarray(pictures @ told - penalty(self.information.astype(np.float64), pictures))


def mean_likelihood(scores: Float64, category: NDArray[np.int64], n_categories: int) -> Float64:
    """Log of the mean likelihood (n, c) over the pictures of each category.

    Parameters
    ----------
    scores : ndarray of shape (n, m)
        Log-likelihoods of pictures.
    category : ndarray of shape (m,), int64
    n_categories : int
        One without a picture has what all pictures together have.
    """
    every = logsumexp(scores, axis=1) - np.log(scores.shape[1])
    out = np.repeat(every[:, None], n_categories, axis=1)
    for place in np.unique(category):
        own = scores[:, category == place]
        out[:, place] = logsumexp(own, axis=1) - np.log(own.shape[1])
    return np.asarray(out)


def encoding_from(tensors: Mapping[str, NDArray[Any]]) -> EncodingModel:
    """Read the model from the tensors of a bundle.

    Raises
    ------
    BundleError
        A tensor is missing.
    """
    return from_tensors(EncodingModel, tensors, part="encoding")
