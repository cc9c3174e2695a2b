"""Film predictions: what an encoding model expects of a brain that follows a film, in a sealed folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, field
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rtdecode.errors import BundleError
from rtdecode.packs.sealed import read_tensors, seal, verify
from rtdecode.typed import Table, checked

PREDICTION_SCHEMA = "rtdecode.film-prediction/1"
_ABOUT = "prediction.json"
_VALUES = "prediction.safetensors"
_NEEDED = "predicted"
_TRUNK = "trunk.safetensors"


class PredictionTable(Table, frozen=True, kw_only=True):
    """Content of ``prediction.json``.

    Attributes
    ----------
    film : str
        Name of the film.
    duration_s : float
        Of the film, seconds.
    t_r_s : float
        Time between two rows of the prediction, seconds; row i is of the volume whose acquisition begins i of these
        after the film.
    delay_s : float
        Delay of the response that is in the prediction already, seconds: nothing is to be shifted.
    parcels : list of str
        Labels in the label image, a column each.
    networks : list of str
        Of which functional network each parcel is; empty if nobody told.
    subject : str
        Whose head predicted: a subject of the training, ``mean`` of all, or the participant that a readout is of.
    modalities : list of str
        That the prediction rests on.
    absent : dict of str to str
        Modalities that it does without, and why.
    sources : dict of str to str
        SHA-256 of what it was made of: ``model``, ``features``, ``film``, ``transcript``, ``readout``, as far as there
        are.
    """

    film: str
    duration_s: Annotated[float, Meta(gt=0)]
    t_r_s: Annotated[float, Meta(gt=0)]
    delay_s: float
    parcels: list[str]
    networks: list[str] = field(default_factory=list)
    subject: str = "mean"
    modalities: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilmPrediction:
    """A verified film prediction.

    Attributes
    ----------
    about : PredictionTable
    predicted : array of shape (t, p), float32
        Of each volume and parcel, in no particular unit.
    profiles : mapping of str to array
        For plots: ``attention`` (modalities, layers), how much each layer counts, and ``ablation`` (modalities,
        parcels), the correlation of the prediction with that which lacks the modality; where they were taken.
    identity : str
        SHA-256 of its manifest.
    """

    about: PredictionTable
    predicted: NDArray[np.float32]
    profiles: Mapping[str, NDArray[np.float32]]
    identity: str = ""


def write_prediction(target: Path, found: FilmPrediction, trunk: NDArray[np.float32] | None = None) -> str:
    """Seal a film prediction in a folder and return its identity.

    Parameters
    ----------
    target : Path
    found : FilmPrediction
    trunk : array of shape (t, h), float32, or None
        What the model's heads read of each volume: a new participant's own parcels are fitted to it. Sessions do not
        read it.

    Raises
    ------
    BundleError
        A value is no number, or the columns are not those that are named.
    """
    _check(str(target), found.about, found.predicted)

    def write(folder: Path) -> None:
        (folder / _ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(found.about), indent=1) + b"\n")
        tensors = {_NEEDED: found.predicted, **found.profiles}
        save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}, folder / _VALUES)
        if trunk is not None:
            save_file({_NEEDED: np.ascontiguousarray(trunk, np.float32)}, folder / _TRUNK)

    return seal(target, PREDICTION_SCHEMA, write)


def open_prediction(folder: Path) -> FilmPrediction:
    """Open a film prediction.

    Raises
    ------
    BundleError
        There is none, its content is not what its manifest says, or it does not fit together.
    """
    identity = verify(folder, PREDICTION_SCHEMA)
    path = folder / _ABOUT
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected a JSON file: {error}") from None
    about: PredictionTable = checked(raw, PredictionTable, source=str(path), error=BundleError)
    tensors = read_tensors(folder / _VALUES)
    if _NEEDED not in tensors:
        raise BundleError(f"{folder / _VALUES}: expected a tensor {_NEEDED!r}, got {', '.join(tensors) or 'none'}")
    predicted = tensors.pop(_NEEDED)
    _check(str(folder), about, predicted)
    return FilmPrediction(about=about, predicted=predicted, profiles=tensors, identity=identity)


def read_trunk(folder: Path) -> NDArray[np.float32]:
    """Return what the model's heads read, (t, h), float32, of a film prediction that was opened.

    Raises
    ------
    BundleError
        The prediction was made without it.
    """
    if not (folder / _TRUNK).is_file():
        raise BundleError(
            f"{folder}: expected {_TRUNK}, what the model's heads read of the film, found none: make the prediction "
            "anew with rtdecode encode"
        )
    return read_tensors(folder / _TRUNK)[_NEEDED]


def _check(source: str, about: PredictionTable, predicted: NDArray[np.float32]) -> None:
    expected = (round(about.duration_s / about.t_r_s), len(about.parcels))
    if predicted.ndim != 2 or predicted.shape != expected or not len(predicted):
        raise BundleError(
            f"{source}: expected {expected[0]} volumes of {expected[1]} parcels, as {_ABOUT} says, got an array of "
            f"shape {predicted.shape}"
        )
    if len(set(about.parcels)) != len(about.parcels):
        raise BundleError(f"{source}: expected parcels of different names, got some twice")
    if about.networks and len(about.networks) != len(about.parcels):
        raise BundleError(
            f"{source}: expected the network of each of {len(about.parcels)} parcels, got {len(about.networks)}"
        )
