"""Films of a session: how the brain matched what was predicted of it, over time, by network and by parcel."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from rtdecode.decode.score.film_rows import standardized
from rtdecode.errors import BundleError
from rtdecode.evaluate.recorded_films import RecordedFilm, read_films
from rtdecode.packs.film_prediction import open_prediction
from rtdecode.statistics import column_correlations

Float64 = NDArray[np.float64]
_FEWEST = 20
"""Volumes of a film that are compared at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """What was measured beside what was predicted, standardised over the showing.

    Attributes
    ----------
    labels : array of shape (i, j, k), int64
        The label image.
    affine : array of shape (4, 4)
    parcels : tuple of p str
        That are both measured and predicted.
    volumes : array of shape (n,), int64
        That are compared.
    measured, predicted : array of shape (n, p)
    """

    labels: NDArray[np.int64]
    affine: Float64
    parcels: tuple[str, ...]
    volumes: NDArray[np.int64]
    measured: Float64
    predicted: Float64

    def correlations(self) -> Float64:
        """Correlation over time of each parcel, (p,)."""
        return column_correlations(self.measured, self.predicted)

    def window(self, last: int, length: int) -> tuple[Float64, Float64]:
        """Mean of the parcels, measured and predicted, over the window that ends with a volume of the run."""
        inside = (self.volumes <= last) & (self.volumes > last - length)
        return self.measured[inside].mean(0), self.predicted[inside].mean(0)

    def painted(self, values: Float64) -> Float64:
        """Return a volume (i, j, k) with the value of each parcel; 0 elsewhere."""
        table = np.zeros(int(self.labels.max()) + 1)
        table[[int(name) for name in self.parcels]] = values
        return np.asarray(table[self.labels])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownFilm:
    """A showing, and what can be compared of it.

    Attributes
    ----------
    recorded : RecordedFilm
    compared : Compared or None
    absent : str
        Why nothing can be compared; empty where it can.
    """

    recorded: RecordedFilm
    compared: Compared | None
    absent: str = ""

    def told(self) -> dict[str, Any]:
        """Return what a report has of it as JSON; None where a volume has no match."""
        recorded = self.recorded
        valid = [one.invalid is None for one in recorded.matches]
        networks = dict.fromkeys(name for one in recorded.matches for name in one.networks)

        def over_time(values: list[float | None]) -> list[float | None]:
            return [value if known else None for value, known in zip(values, valid, strict=True)]

        found = {} if self.compared is None else _by_parcel(self.compared)
        return {
            "run": recorded.run,
            "film": recorded.film,
            "start_s": recorded.start_s,
            "volumes": recorded.volumes.tolist(),
            "z": over_time([one.z for one in recorded.matches]),
            "rank": over_time([one.rank for one in recorded.matches]),
            "networks": {name: over_time([one.networks.get(name) for one in recorded.matches]) for name in networks},
            "claim": max((one.claim for one in recorded.matches), default=1.0),
            "asked": next((one.asks for one in recorded.matches if one.asks), ""),
            "correlation": found,
            "absent": self.absent,
        }


def shown_films(session: Path) -> list[ShownFilm]:
    """Read the films of a session, with predictions and label image as far as they are where its settings say.

    Raises
    ------
    JournalError
        Its journal is damaged.
    """
    if not (session / "journal" / "inputs.journal").is_file():
        return []
    settings = tomllib.loads((session / "settings.toml").read_text(encoding="utf-8"))
    return [_shown(recorded, session.parent, settings) for recorded in read_films(session)]


def _shown(recorded: RecordedFilm, root: Path, settings: Mapping[str, Any]) -> ShownFilm:
    section = settings.get("film", {})
    folder = section.get("predictions", {}).get(recorded.film)
    image = settings.get("estimate", {}).get("parcels", {}).get(section.get("parcels"))
    if folder is None or image is None:
        return ShownFilm(recorded=recorded, compared=None, absent="the settings name no prediction or label image")
    try:
        prediction = open_prediction(root / folder)
        labels: Any = nib.load(root / image)
        voxels = np.asarray(labels.dataobj).astype(np.int64)
    except (BundleError, OSError, ImageFileError) as error:
        return ShownFilm(recorded=recorded, compared=None, absent=str(error))
    about = prediction.about
    names = tuple(name for name in recorded.parcels if name in about.parcels)
    columns = [about.parcels.index(name) for name in names]
    rows, on = recorded.at_volumes(prediction.predicted[:, columns], about.t_r_s)
    if on.sum() < _FEWEST or not names:
        return ShownFilm(recorded=recorded, compared=None, absent="too little of the film was on")
    measured = recorded.measured[on][:, [recorded.parcels.index(name) for name in names]]
    compared = Compared(
        labels=voxels,
        affine=labels.affine,
        parcels=names,
        volumes=recorded.volumes[on],
        measured=standardized(measured),
        predicted=standardized(rows[on]),
    )
    return ShownFilm(recorded=recorded, compared=compared)


def _by_parcel(compared: Compared) -> dict[str, float]:
    return dict(zip(compared.parcels, compared.correlations().tolist(), strict=True))
