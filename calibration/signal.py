"""Whether a response is one to a stimulus at all, where trials are far enough apart to leave rest between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.encoding.encoder import Encoder, Inverted
from rtdecode.decode.score.evidence import SIGNAL_LEVEL

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = round(1 / SIGNAL_LEVEL) - 1
"""Fewer stretches of rest tell nothing: no response could be told from them at the level of the test."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signal:
    """Direction from rest to the average response, whitened.

    Attributes
    ----------
    weights : ndarray of shape (r,), float32
        Of the voxels of the whole model's noise; empty without rest.
    rest : ndarray of shape (m,)
        How far stretches of rest lie along it, each by a direction learned without its run.
    """

    weights: Float32
    rest: Float64


def find_signal(
    encoder: Encoder, responses: Float32, run: Ints, rest: Float32, rest_run: Ints, folds: Sequence[Ints]
) -> Signal:
    """Learn the direction, and how far rest lies along it.

    Parameters
    ----------
    encoder : Encoder
    responses : ndarray of shape (n, v), float32
        Of the calibration trials, standardised.
    run : ndarray of shape (n,), int64
        Of each of these.
    rest : ndarray of shape (m, v), float32
        Of stretches of rest, standardised in the same way.
    rest_run : ndarray of shape (m,), int64
        Of each of these.
    folds : sequence of ndarray of int64
        Trials of each fold, in the order of `Encoder.held`.
    """
    if len(rest) < FEWEST or len(np.unique(rest_run)) < 2:
        return Signal(weights=np.zeros(0, np.float32), rest=np.zeros(0))
    found = np.empty(len(rest))
    for number in np.unique(rest_run):
        inside, outside = rest_run == number, rest_run != number
        fold = int(np.argmax([np.sum(run[part] == number) for part in folds]))
        held = encoder.held[fold]
        weights = _direction(held, responses[run != number], rest[outside])
        found[inside] = rest[inside][:, held.voxels[: len(weights)]] @ weights
    return Signal(weights=_direction(encoder.whole, responses, rest), rest=found)


def _direction(inverted: Inverted, responses: Float32, rest: Float32) -> Float32:
    """Return ``S^-1`` times the difference of the means."""
    noise = inverted.noise
    apart = (responses.mean(0) - rest.mean(0))[inverted.voxels[: len(noise.own)]]
    whitener = noise.whitener()
    weights = apart / noise.own - (apart @ whitener.T) @ whitener
    return np.asarray(weights / np.sqrt(float(apart @ weights)), np.float32)
