"""How well measured parcels match what an encoding model predicts of a film: stimulus match, volume by volume.

The true time of the film is compared with decoys, other times of the same film. It is the match of stimulus and brain
that is told, and nothing of attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.claim import CLAIM
from rtdecode.decode.score.film_rows import MatchCalibration, sampled, standardized

Float64 = NDArray[np.float64]

WINDOW = 20
"""Volumes that a match rests on where nobody says otherwise."""
DECOY_S = 20.0
"""How far from the true time decoys are at least, seconds."""
SETTLE = 40
"""Volumes after which it is estimated by how much the film was late; if it cannot be told yet, again a window later."""
LATEST_S = 10.0
"""How far from what was announced a film's start is looked for, seconds."""
_SCALED_BY = 8
_OFFSETS_A_VOLUME = 4
_SURE_Z = 3.0
_GAP_S = 15.0
_POWER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matched:
    """What one volume says.

    Attributes
    ----------
    correlation : float
        Of the volume's parcels with their prediction, over parcels.
    z : float
        Match of the window: distance from the mean of the decoys in their standard deviations.
    rank : float
        Share of decoys that match worse; .5 is chance.
    volumes : int
        In the window.
    networks : mapping of str to float
        `z` of each functional network's parcels alone.
    """

    correlation: float
    z: float
    rank: float
    volumes: int
    networks: Mapping[str, float]


class _Times:
    """Scores a volume against every time of a film, by a log-likelihood or, uncalibrated, a correlation."""

    def __init__(self, film: Float64, calibration: MatchCalibration | None, members: NDArray[np.intp]) -> None:
        self._members = members
        self._calibrated = calibration is not None
        chosen = film[:, members]
        if calibration is None:
            chosen = chosen - chosen.mean(1, keepdims=True)
            length = np.linalg.norm(chosen, axis=1, keepdims=True)
            self._rows = chosen / np.where(length > 0, length, np.inf)
            self._own = np.zeros(len(film))
        else:
            expected = calibration.gain[members] * chosen
            self._rows = np.linalg.solve(calibration.noise[np.ix_(members, members)], expected.T).T
            self._own = 0.5 * (self._rows * expected).sum(1)

    def of(self, values: Float64) -> Float64:
        return np.asarray(self._rows @ self._chosen(values) - self._own)

    def at(self, values: Float64, place: int) -> float:
        return float(self._rows[place] @ self._chosen(values) - self._own[place])

    def _chosen(self, values: Float64) -> Float64:
        chosen = values[self._members]
        if not self._calibrated:
            chosen = chosen - chosen.mean()
            length = float(np.linalg.norm(chosen))
            chosen = chosen / length if length > 0 else chosen
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Film:
    """A film on the volumes of a session, from one phase on."""

    rows: Float64
    plain: _Times
    judge: _Times
    networks: dict[str, _Times]
    offset_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Past:
    """What is kept of a volume: where in the film it lies, its correlation, its scores at every time.

    `aligned` holds these scores, and those of each network, by the shift of the film from the true time.
    """

    place: int
    index: int
    plain: float
    scores: Float64
    aligned: Float64


class FilmMatch:
    """Follows one showing of a film.

    Parameters
    ----------
    predicted : array of shape (t, p)
        Of the parcels that are measured, delay of the response included.
    predicted_t_r_s, t_r_s : float
        Repetition time of the prediction and of the session, seconds.
    onset_s : float
        When the film began, seconds from the start of the run's first volume.
    calibration : MatchCalibration or None
    networks : sequence of str
        Of each parcel; empty where they are not known.
    window : int
        Volumes that a match rests on.

    Attributes
    ----------
    claim : float
        Evidence that the participant follows the film: 20 or more may be claimed whenever one looks, and stays.
    """

    def __init__(
        self,
        predicted: NDArray[np.floating[Any]],
        *,
        predicted_t_r_s: float,
        t_r_s: float,
        onset_s: float,
        calibration: MatchCalibration | None = None,
        networks: Sequence[str] = (),
        window: int = WINDOW,
    ) -> None:
        self._predicted = standardized(np.asarray(predicted, np.float64))
        self._predicted_t_r_s, self._t_r_s = predicted_t_r_s, t_r_s
        self._onset_s, self._window = onset_s, window
        self._calibration = calibration
        self._duration_s = len(predicted) * predicted_t_r_s
        self._members = {name: np.flatnonzero(np.array(networks) == name) for name in sorted(set(networks))}
        self._film = self._from(0.0)
        self._measured: list[tuple[int, Float64]] = []
        self._past: list[_Past] = []
        self._scale: Float64 | None = None
        self._settled = False
        self._block: list[_Past] = []
        self._rest = 0
        self.claim = 1.0

    @property
    def offset_s(self) -> float | None:
        """By how much the film was late, seconds; None as long as it cannot be told."""
        return self._film.offset_s if self._settled else None

    @property
    def calibrated(self) -> bool:
        """Whether an earlier film has taught scales and noise."""
        return self._calibration is not None

    def add(self, index: int, values: Float64) -> Matched | str:
        """Take a volume.

        Parameters
        ----------
        index : int
            Of the volume in its run, after that of the one before.
        values : array of shape (p,), float64
            Of each parcel; nan where the volume is not used.

        Returns
        -------
        Matched or str
            Why there is no match, in words.
        """
        place = self._place(index)
        if not 0 <= place < len(self._film.rows):
            return "the film is not on"
        if not np.isfinite(values).all():
            return "the volume is left out: it has moved, or those before do not predict it"
        self._measured.append((index, values))
        scaled = self._scaled(values)
        if scaled is None:
            return f"the scale of the parcels is not known before {_SCALED_BY} volumes"
        one = self._scored(place, index, scaled)
        self._past.append(one)
        if len(self._measured) > SETTLE:
            self._bet(one)
        due = len(self._past) >= SETTLE and (len(self._past) - SETTLE) % self._window == 0
        if due and not self._settled and self._settle():
            return "by how much the film was late has been estimated; the window begins anew"
        return self._matched(one)

    def calibration_data(self) -> tuple[Float64, Float64]:
        """Return measured parcels, as they came, and their prediction (t, p): what `calibrate_match` takes."""
        placed = [(self._place(index), values) for index, values in self._measured]
        inside = [(place, values) for place, values in placed if 0 <= place < len(self._film.rows)]
        return np.array([values for _, values in inside]), self._film.rows[[place for place, _ in inside]]

    def _from(self, offset_s: float) -> _Film:
        """Put the film on the session's volumes."""
        count = max(int(self._duration_s / self._t_r_s), 1)
        phase_s = math.fmod(-(self._onset_s + offset_s), self._t_r_s) % self._t_r_s
        times = phase_s + (np.arange(count) + 0.5) * self._t_r_s
        rows = sampled(self._predicted, self._predicted_t_r_s, times)
        every = np.arange(rows.shape[1])
        return _Film(
            rows=rows,
            plain=_Times(rows, None, every),
            judge=_Times(rows, self._calibration, every),
            networks={name: _Times(rows, self._calibration, some) for name, some in self._members.items()},
            offset_s=offset_s,
        )

    def _place(self, index: int) -> int:
        return math.floor(index - (self._onset_s + self._film.offset_s) / self._t_r_s + 1e-9)

    def _scaled(self, values: Float64) -> Float64 | None:
        """Standardise a volume: by the calibration, or by the standard deviation of the volumes up to `SETTLE`."""
        if self._calibration is not None:
            return np.asarray((values - self._calibration.centre) / self._calibration.scale)
        if self._scale is None:
            if len(self._measured) < _SCALED_BY:
                return None
            spread = np.std([before for _, before in self._measured], axis=0)
            self._scale = np.where(spread > 0, spread, np.inf)
        return np.asarray(values / self._scale)

    def _scored(self, place: int, index: int, values: Float64) -> _Past:
        scores = np.array([times.of(values) for times in (self._film.judge, *self._film.networks.values())])
        count = scores.shape[1]
        return _Past(
            place=place,
            index=index,
            plain=self._film.plain.at(values, place),
            scores=scores[0],
            aligned=scores[:, (place + np.arange(count)) % count],
        )

    def _settle(self) -> bool:
        """Estimate by how much the film was late, and let it be if it is sure; return whether it was moved.

        What this rests on is not compared any more where the film is moved: the best of many offsets matches by itself.
        """
        step_s = self._t_r_s / _OFFSETS_A_VOLUME
        reach = int(LATEST_S / step_s)
        candidates = np.asarray(np.arange(-reach, reach + 1) * step_s, np.float64)
        best = float(candidates[np.argmax(self._whole(candidates))])
        if not self._sure(best):
            return False
        self._settled = True
        if abs(best) < self._t_r_s / 2:
            return False
        self._film = self._from(best)
        self._past = []
        return True

    def _whole(self, offsets_s: Float64) -> Float64:
        """Score of all volumes so far at each offset from where they are taken to lie."""
        scores = np.array([one.scores for one in self._past])
        places = np.array([one.place for one in self._past]) - offsets_s[:, None] / self._t_r_s
        low = np.floor(places).astype(np.intp)
        share = places - low
        volumes, last = np.arange(len(scores)), scores.shape[1] - 1
        before, after = (scores[volumes, np.clip(each, 0, last)] for each in (low, low + 1))
        return np.asarray(((1 - share) * before + share * after).sum(1))

    def _sure(self, offset_s: float) -> bool:
        """Whether a match at this offset stands out of those at other times of the film."""
        shift = round(-offset_s / self._t_r_s)
        totals = _shifted(self._past)[0]
        true = totals[shift % len(totals)]
        decoys = totals[self._decoys(len(totals), shift)]
        return len(decoys) > 1 and decoys.std() > 0 and (true - decoys.mean()) / decoys.std() >= _SURE_Z

    def _decoys(self, count: int, shift: int = 0) -> NDArray[np.intp]:
        """Shifts, modulo the length of the film, that lie far enough from one that is taken for true."""
        away = np.abs((np.arange(count) - shift + count // 2) % count - count // 2) * self._t_r_s
        return np.flatnonzero(away >= DECOY_S)

    def _matched(self, newest: _Past) -> Matched | str:
        recent = [one for one in self._past[-self._window :] if newest.index - one.index < self._window]
        every = _shifted(recent)
        totals = every[0]
        decoys = self._decoys(len(totals))
        if len(decoys) < 2:
            return f"the film is too short to have decoys {DECOY_S:g} s away"
        others = totals[decoys]
        return Matched(
            correlation=newest.plain,
            z=_z(float(totals[0]), others),
            rank=float((others < totals[0]).mean() + 0.5 * (others == totals[0]).mean()),
            volumes=len(recent),
            networks={
                name: _z(float(own[0]), own[decoys]) for name, own in zip(self._film.networks, every[1:], strict=True)
            },
        )

    def _bet(self, one: _Past) -> None:
        """Bet, a window at a time with a pause between, that the true time matches better than decoys do.

        What has reached `CLAIM` is not put at risk again.
        """
        if self.claim >= CLAIM:
            return
        if self._rest > 0:
            self._rest -= 1
            return
        self._block.append(one)
        if len(self._block) < self._window:
            return
        totals = _shifted(self._block)[0]
        others = totals[self._decoys(len(totals))]
        if len(others):
            p = (1 + np.count_nonzero(others >= totals[0])) / (1 + len(others))
            self.claim *= (1 - _POWER) * float(p) ** -_POWER
        self._block = []
        self._rest = math.ceil(_GAP_S / self._t_r_s)


def _shifted(some: Sequence[_Past]) -> Float64:
    """Sum of scores of volumes at every shift of the film, which is taken as a ring; a row each of all and networks."""
    return np.asarray(np.array([one.aligned for one in some]).sum(0))


def _z(true: float, others: Float64) -> float:
    spread = float(others.std())
    return (true - float(others.mean())) / spread if spread > 0 else 0.0
