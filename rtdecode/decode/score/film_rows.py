"""Predictions of a film on a session's volumes, and what a film run teaches of how a participant's parcels answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_SHRINKAGE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchCalibration:
    """What a film run taught of a participant.

    Attributes
    ----------
    centre, scale : array of shape (p,), float64
        Of the measured parcels.
    gain : array of shape (p,), float64
        Correlation of each parcel with its prediction; 0 where it is below.
    noise : array of shape (p, p), float64
        Covariance of what the prediction leaves of the standardised parcels, half shrunk to its diagonal.
    """

    centre: Float64
    scale: Float64
    gain: Float64
    noise: Float64


def standardized(values: Float64) -> Float64:
    """Each column less its mean, over its standard deviation; 0 where it does not vary."""
    spread = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(spread > 0, spread, np.inf))


def sampled(predicted: NDArray[np.floating[Any]], t_r_s: float, times_s: NDArray[np.floating[Any]]) -> Float64:
    """Prediction at the middle of volumes of another repetition time.

    Parameters
    ----------
    predicted : array of shape (t, p)
        Row i is of a volume from ``i * t_r_s`` to ``(i + 1) * t_r_s``.
    t_r_s : float
        Seconds.
    times_s : array of shape (n,)
        Middle of each volume, seconds of the film; the ends are continued.

    Returns
    -------
    array of shape (n, p), float64
        Linear between the middles of the rows.
    """
    places = np.clip(times_s / t_r_s - 0.5, 0, len(predicted) - 1)
    first = np.minimum(places.astype(np.int64), max(len(predicted) - 2, 0))
    second = np.minimum(first + 1, len(predicted) - 1)
    share = (places - first)[:, None]
    return np.asarray((1 - share) * predicted[first] + share * predicted[second], np.float64)


def calibrate_match(measured: Float64, predicted: Float64) -> MatchCalibration:
    """Learn scales, gains and noise from a run in which the participant followed a film.

    Parameters
    ----------
    measured, predicted : array of shape (t, p)
        Of the same volumes.
    """
    scale = measured.std(0)
    scale = np.where(scale > 0, scale, np.inf)
    found, expected = (measured - measured.mean(0)) / scale, standardized(predicted)
    gain = np.maximum((found * expected).mean(0), 0.0)
    left = found - gain * expected
    covariance = left.T @ left / len(left)
    noise = (1 - _SHRINKAGE) * covariance
    noise[np.diag_indices_from(noise)] = np.maximum(np.diag(covariance), 1e-3)
    return MatchCalibration(centre=measured.mean(0), scale=scale, gain=gain, noise=noise)
