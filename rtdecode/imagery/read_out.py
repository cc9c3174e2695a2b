"""Identification of what is imagined, epoch by epoch.

Betas of imagery have another mean and spread than those of perception, which the decoder was calibrated on. They are
brought to the calibration's by statistics of their own task, frozen from its first epochs; then repeats of a target are
averaged as they come, and the average is compared with the cued targets by the participant's encoding model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.packs import ParticipantBundle
from rtdecode.statistics import mid_ranks, p_value

Float32 = NDArray[np.float32]
Likelihood = Callable[[Float32, Sequence[str]], NDArray[np.float64]]
"""Beta (v,) and names of candidates to their log-likelihoods; see `Decoder.likelihood`."""
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationScale:
    """Mean and spread of the calibration's betas, as an encoding model holds them.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Places in a beta; others are not looked at.
    centre, scale : ndarray of shape (s,)
    """

    voxels: NDArray[np.int64]
    centre: Float32
    scale: Float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageryEpoch:
    """One imagery epoch as it was estimated.

    Attributes
    ----------
    trial : str
    target : str
        Stimulus that was announced; that of the protocol's catch where there is none.
    beta : ndarray of shape (v,), float32
    vividness : float or None
        As rated, where it was.
    """

    trial: str
    target: str
    beta: Float32
    vividness: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What is said after an epoch.

    Attributes
    ----------
    trial, target : str
    repeats : int
        Of the target so far, this one included: what the average is of.
    predicted : str
        Target that fits the average best.
    rank : float
        Mid-rank of the cued target, 1 is best.
    alone : str
        Target that fits this epoch alone best.
    p_catch : float or None
        How often epochs without a target fit the best one at least as much better than the others; None without such.
    vividness : float or None
    """

    trial: str
    target: str
    repeats: int
    predicted: str
    rank: float
    alone: str
    p_catch: float | None
    vividness: float | None


class ImageryReadOut:
    """Takes the epochs of one task of one participant in their order.

    Parameters
    ----------
    protocol : ImageryProtocol
    likelihood : callable
    scale : CalibrationScale
    """

    def __init__(self, protocol: ImageryProtocol, likelihood: Likelihood, scale: CalibrationScale) -> None:
        self._protocol = protocol
        self._likelihood = likelihood
        self._scale = scale
        self._waiting: list[ImageryEpoch] = []
        self._statistics: tuple[Float32, Float32] | None = None
        self._sums: dict[str, tuple[NDArray[np.float64], int]] = {}
        self._catch: list[float] = []

    def add(self, epoch: ImageryEpoch) -> Identified | None:
        """Take an epoch; returns what can be said of its target, None while too little is known or there is none."""
        if self._statistics is None:
            self._waiting.append(epoch)
            if len(self._waiting) < self._protocol.warm_up:
                return None
            rows = np.stack([one.beta for one in self._waiting])[:, self._scale.voxels]
            self._statistics = _statistics(rows)
            *earlier, last = self._waiting
            self._waiting = []
            for one in earlier:
                self._take(one)
            return self._take(last)
        return self._take(epoch)

    def _take(self, epoch: ImageryEpoch) -> Identified | None:
        beta = self._brought(epoch.beta)
        names = self._protocol.names
        alone = self._likelihood(beta, names)
        lead = float(alone.max() - alone.mean())
        if epoch.target == self._protocol.catch:
            self._catch.append(lead)
        if epoch.target not in names:
            return None
        total, n = self._sums.get(epoch.target, (np.zeros(len(beta)), 0))
        self._sums[epoch.target] = total, n = total + beta, n + 1
        if n < self._protocol.least_repeats:
            return None
        averaged = self._likelihood((total / n).astype(np.float32), names)
        return Identified(
            trial=epoch.trial,
            target=epoch.target,
            repeats=n,
            predicted=names[int(averaged.argmax())],
            rank=float(mid_ranks(averaged)[names.index(epoch.target)]),
            alone=names[int(alone.argmax())],
            p_catch=p_value(np.array(self._catch), lead) if self._catch else None,
            vividness=epoch.vividness,
        )

    def _brought(self, beta: Float32) -> Float32:
        """Bring a beta to the mean and spread of the calibration; a voxel without an estimate to its mean."""
        assert self._statistics is not None
        mean, deviation = self._statistics
        scale = self._scale
        standard = np.nan_to_num((beta[scale.voxels] - mean) / deviation, posinf=0, neginf=0)
        found = beta.astype(np.float32)
        found[scale.voxels] = standard * scale.scale + scale.centre
        return found


def read_all(readout: ImageryReadOut, epochs: Sequence[ImageryEpoch]) -> list[Identified]:
    """Take many epochs, and return what was said."""
    return [said for said in map(readout.add, epochs) if said is not None]


def scale_of(bundle: ParticipantBundle) -> CalibrationScale:
    """Return mean and spread of the betas that a participant was calibrated on."""
    tensors = bundle.encoding
    return CalibrationScale(voxels=tensors["voxels"], centre=tensors["centre"], scale=tensors["scale"])


def _statistics(rows: Float32) -> tuple[Float32, Float32]:
    with np.errstate(invalid="ignore"):
        known = np.where(np.isfinite(rows), rows, np.nan)
        mean = np.nan_to_num(np.nanmean(known, 0))
        deviation = np.nan_to_num(np.nanstd(known, 0, ddof=1))
    return mean.astype(np.float32), np.maximum(deviation, _LEAST_DEVIATION).astype(np.float32)
