"""Films that were shown in a session: what was measured of each volume, and how it matched."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire
from rtdecode.decode.score.film_rows import sampled
from rtdecode.errors import SettingsError
from rtdecode.session.entries import FilmEntry, VolumeEntry, read_inputs, read_outputs

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedFilm:
    """One showing of a film: from its announcement to the next, or to the end of its run.

    Attributes
    ----------
    run : int
    film : str
        As announced.
    start_s : float
        When it began, seconds from the run's first volume: as announced, and later by what the session estimated.
    t_r_s : float
        Seconds.
    volumes : array of shape (n,), int64
        Indices in the run.
    parcels : tuple of p str
        Labels of the parcels that were measured.
    measured : array of shape (n, p), float64
        Percent signal change; nan where a volume was left out.
    matches : tuple of n StimulusMatch
        What the session told of each volume.
    """

    run: int
    film: str
    start_s: float
    t_r_s: float
    volumes: NDArray[np.int64]
    parcels: tuple[str, ...]
    measured: Float64
    matches: tuple[wire.StimulusMatch, ...]

    @property
    def times_s(self) -> Float64:
        """Middle of each volume, seconds of the film."""
        return np.asarray((self.volumes + 0.5) * self.t_r_s - self.start_s)

    def at_volumes(self, rows: NDArray[np.floating], t_r_s: float) -> tuple[Float64, NDArray[np.bool_]]:
        """Return rows of a film at these volumes.

        Parameters
        ----------
        rows : array of shape (t, k)
            A row each `t_r_s` seconds of the film.
        t_r_s : float
            Seconds.

        Returns
        -------
        values : array of shape (n, k), float64
        on : array of shape (n,), bool
            Where the film is on and the volume is used.
        """
        times = self.times_s
        on = (times >= 0) & (times < len(rows) * t_r_s) & np.isfinite(self.measured).all(1)
        return sampled(rows, t_r_s, times), on


def read_films(session: Path) -> list[RecordedFilm]:
    """Read all showings of a session, in their order; none where no film was announced.

    Raises
    ------
    SettingsError
        It is no session folder.
    JournalError
        Its journal is damaged.
    """
    journals = session / "journal"
    if not (journals / "inputs.journal").is_file():
        raise SettingsError([f"{session}: expected a session folder, found no journal in it"])
    section = tomllib.loads((session / "settings.toml").read_text(encoding="utf-8")).get("film", {})
    image = str(section.get("parcels", ""))
    told = _told(journals / "outputs.journal")
    on: FilmEntry | None = None
    found: list[tuple[FilmEntry, float, list[int]]] = []
    for entry in read_inputs(journals / "inputs.journal"):
        if isinstance(entry, FilmEntry):
            on = entry
        elif isinstance(entry, VolumeEntry) and on is not None and entry.run == on.run and entry.t_r_s is not None:
            if (entry.run, entry.volume) not in told:
                continue
            if not found or found[-1][0] is not on:
                found.append((on, entry.t_r_s, []))
            found[-1][2].append(entry.volume)
    return [_showing(start, t_r_s, volumes, told, image) for start, t_r_s, volumes in found]


def _told(outputs: Path) -> dict[tuple[int, int], tuple[wire.Volume, wire.StimulusMatch]]:
    volumes: dict[tuple[int, int], wire.Volume] = {}
    found = {}
    for _, entry in read_outputs(outputs):
        if entry.topic not in ("volume", "stimulusmatch"):
            continue
        message = wire.unpack(entry.topic.encode(), entry.payload)
        place = (message.run or 0, message.volume or 0)
        if isinstance(message, wire.Volume):
            volumes[place] = message
        elif isinstance(message, wire.StimulusMatch) and place in volumes:
            found[place] = (volumes[place], message)
    return found


def _showing(
    start: FilmEntry,
    t_r_s: float,
    volumes: list[int],
    told: dict[tuple[int, int], tuple[wire.Volume, wire.StimulusMatch]],
    image: str,
) -> RecordedFilm:
    each = [told[start.run, volume] for volume in volumes]
    parcels = tuple(dict.fromkeys(name for volume, _ in each for name in volume.parcels.get(image, {})))
    offsets = [match.offset_s for _, match in each if match.offset_s is not None]
    return RecordedFilm(
        run=start.run,
        film=start.film,
        start_s=start.onset_s + (offsets[-1] if offsets else 0.0),
        t_r_s=t_r_s,
        volumes=np.array(volumes, np.int64),
        parcels=parcels,
        measured=np.array(
            [[volume.parcels.get(image, {}).get(name, np.nan) for name in parcels] for volume, _ in each], np.float64
        ).reshape(len(each), len(parcels)),
        matches=tuple(match for _, match in each),
    )
