"""Films that are shown in a session: which is on, and how well the brain matches it. A part of the fold over inputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from rtdecode import client as wire
from rtdecode.decode.score.claim import CLAIM
from rtdecode.decode.score.film_rows import MatchCalibration, calibrate_match
from rtdecode.decode.score.stimulus_match import FilmMatch, Matched
from rtdecode.packs.film_prediction import FilmPrediction, open_prediction
from rtdecode.protocol_file import FilmRule
from rtdecode.records import Command, FilmStart, RegisteredVolume, Stamp
from rtdecode.score_settings import FilmSettings

FEWEST_PARCELS = 8
CALIBRATES = 100
"""Volumes of a film that scales and noise are learned from at least."""
_log = logging.getLogger(__name__)


class Films:
    """Follows films, one at a time; the first that is followed for long enough calibrates the runs after it.

    Parameters
    ----------
    settings : FilmSettings
    predictions : mapping of str to FilmPrediction
        By the name of the film.
    rule : FilmRule or None
        What becomes of a film that is no longer followed.
    """

    def __init__(
        self, settings: FilmSettings, predictions: Mapping[str, FilmPrediction], rule: FilmRule | None = None
    ) -> None:
        self._settings = settings
        self._rule = rule
        self._low = 0
        self._asks = False
        self._decided: list[Command] = []
        self._predictions = predictions
        self._start: FilmStart | None = None
        self._match: FilmMatch | None = None
        self._columns: tuple[str, ...] = ()
        self._calibrations: dict[tuple[str, ...], MatchCalibration] = {}
        self._faults: list[wire.Fault] = []
        self._moved = False

    def described(self) -> str:
        """Say in words what predictions there are."""
        return "; ".join(
            f"{name}: {one.about.duration_s:.0f} s, {len(one.about.parcels)} parcels, {one.about.subject}, "
            f"by {', '.join(one.about.modalities) or 'nobody said what'}"
            for name, one in self._predictions.items()
        )

    def identities(self) -> dict[str, str]:
        """Return the identity of each prediction, by the name of its film."""
        return {name: one.identity for name, one in self._predictions.items()}

    def begin(self, start: FilmStart) -> None:
        """Take note that a film is on from here, or goes on after a pause."""
        self._start, self._match, self._moved = start, None, False
        self._low, self._asks = 0, False

    def end(self, run: int) -> None:
        """Take note that a run is over; learn from it if its film was followed."""
        start, match = self._start, self._match
        if start is None or start.run > run:
            return
        self._start = self._match = None
        if match is None or match.claim < CLAIM or self._columns in self._calibrations:
            return
        measured, predicted = match.calibration_data()
        if len(measured) >= CALIBRATES:
            self._calibrations[self._columns] = calibrate_match(measured, predicted)
            _log.info("stimulus match is calibrated by %d volumes of run %d", len(measured), run)

    def match(self, volume: RegisteredVolume) -> wire.StimulusMatch | None:
        """Compare a volume; None where no film is on in its run."""
        start = self._start
        if start is None or start.run != volume.stamp.run:
            return None
        values = volume.parcels.get(self._settings.parcels, {})
        if self._match is None:
            problem = self._open(start, tuple(values), volume.t_r_s)
            if problem is not None:
                return wire.StimulusMatch(film=start.film, final=True, invalid=problem)
        match = self._match
        assert match is not None  # opened above
        found = match.add(volume.stamp.volume, np.array([values.get(name, math.nan) for name in self._columns]))
        self._tell_late(start, match)
        told = wire.StimulusMatch(
            film=start.film,
            final=True,
            parcels=len(self._columns),
            calibrated=match.calibrated,
            offset_s=match.offset_s,
            claim=match.claim,
        )
        return self._ruled(_with(told, found), volume.stamp)

    def decisions(self) -> Iterator[Command]:
        """Yield what the protocol's rule has decided since the last time."""
        while self._decided:
            yield self._decided.pop(0)

    def faults(self) -> Iterator[wire.Fault]:
        """Yield what is to be told of the films since the last time."""
        while self._faults:
            yield self._faults.pop(0)

    def _ruled(self, told: wire.StimulusMatch, stamp: Stamp) -> wire.StimulusMatch:
        """Count the volumes for which the match has been low, decide by the rule, and tell what it asks."""
        rule = self._rule
        if rule is None:
            return told
        if told.invalid is None and not self._asks:
            full = told.window == self._settings.window
            self._low = self._low + 1 if full and told.z < rule.below_z else 0
            if self._low >= rule.volumes:
                self._asks = True
                reason = (
                    f"film {told.film} is not followed: its match was below {rule.below_z:g} for {self._low} volumes"
                )
                _log.info("run %d, volume %d: %s", stamp.run, stamp.volume, reason)
                self._decided.append(
                    Command(
                        token=f"film rule, run {stamp.run}, volume {stamp.volume}",
                        command="pause" if rule.action == "pause" else "film",
                        reason=reason,
                        target=rule.film or None,
                    )
                )
        return replace(told, asks=rule.action, next_film=rule.film) if self._asks else told

    def _open(self, start: FilmStart, measured: tuple[str, ...], t_r_s: float | None) -> str | None:
        """Begin to follow a film with the parcels that are both predicted and measured; say why that cannot be."""
        prediction = self._predictions[start.film]
        about = prediction.about
        if t_r_s is None:
            return "the repetition time is not known"
        places = {name: place for place, name in enumerate(about.parcels)}
        columns = tuple(name for name in measured if name in places)
        if len(columns) < FEWEST_PARCELS:
            reason = (
                f"film {start.film}: expected {FEWEST_PARCELS} parcels or more that are both predicted and measured, "
                f"got {len(columns)} of {len(about.parcels)} predicted and {len(measured)} measured"
            )
            if not self._moved:
                self._moved = True
                remedy = "name the label image that the prediction was made for"
                self._faults.append(
                    wire.Fault(
                        run=start.run,
                        part="film",
                        kind="parcels",
                        reason=reason,
                        degraded="no stimulus match",
                        remedy=remedy,
                    )
                )
            return reason
        self._columns = columns
        chosen = [places[name] for name in columns]
        self._match = FilmMatch(
            prediction.predicted[:, chosen],
            predicted_t_r_s=about.t_r_s,
            t_r_s=t_r_s,
            onset_s=start.onset_s,
            calibration=self._calibrations.get(columns),
            networks=[about.networks[place] for place in chosen] if about.networks else (),
            window=self._settings.window,
        )
        return None

    def _tell_late(self, start: FilmStart, match: FilmMatch) -> None:
        if self._moved or not match.offset_s:
            return
        self._moved = True
        late = "later" if match.offset_s > 0 else "earlier"
        self._faults.append(
            wire.Fault(
                run=start.run,
                part="film",
                kind="offset",
                reason=f"film {start.film} began {abs(match.offset_s):.1f} s {late} than announced, as its match tells",
                degraded="none: this is taken into account from here on",
                remedy="compare how the experiment starts the film with when it announces it",
            )
        )


def open_films(settings: FilmSettings, rule: FilmRule | None = None) -> Films:
    """Open all predictions of the settings.

    Raises
    ------
    BundleError
        One cannot be used.
    """
    return Films(settings, {name: open_prediction(folder) for name, folder in settings.predictions.items()}, rule)


def _with(told: wire.StimulusMatch, found: Matched | str) -> wire.StimulusMatch:
    if isinstance(found, str):
        return replace(told, invalid=found)
    return replace(
        told,
        correlation=found.correlation,
        z=found.z,
        rank=found.rank,
        window=found.volumes,
        networks=dict(found.networks),
    )
