"""Film readouts: from what a film encoder's heads read to one participant's own parcels, in a sealed folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import field
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rtdecode.errors import BundleError
from rtdecode.packs.sealed import read_tensors, seal, verify
from rtdecode.typed import Table, checked

READOUT_SCHEMA = "rtdecode.film-readout/1"
_ABOUT = "readout.json"
_VALUES = "readout.safetensors"


class ReadoutTable(Table, frozen=True, kw_only=True):
    """Content of ``readout.json``.

    Attributes
    ----------
    participant : str
    session : str
        Name of the session whose films it was fitted to.
    model : str
        Identity of the pack whose heads it stands for.
    films : dict of str to str
        Identity of the prediction of each of these films.
    parcels : list of str
        Labels in the label image, a column each.
    networks : list of str
        Of which functional network each parcel is; empty if nobody told.
    volumes, runs : int
        That it was fitted to.
    """

    participant: str
    session: str
    model: str
    films: dict[str, str]
    parcels: list[str]
    networks: list[str] = field(default_factory=list)
    volumes: int
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilmReadout:
    """A linear map, which takes the place of a head.

    Attributes
    ----------
    about : ReadoutTable
    weights : array of shape (h, p), float32
    constant : array of shape (p,), float32
        Parcels are standardised: 0 is their mean, 1 their standard deviation over a run.
    held_out : array of shape (p,), float32
        Correlation over time of each parcel with what was predicted of stretches that the fit had not seen.
    penalties : array of shape (p,), float32
        Of the ridge regression of each parcel.
    identity : str
        SHA-256 of its manifest.
    """

    about: ReadoutTable
    weights: NDArray[np.float32]
    constant: NDArray[np.float32]
    held_out: NDArray[np.float32]
    penalties: NDArray[np.float32]
    identity: str = ""

    def __call__(self, trunk: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Parcels (t, p) of what the heads read (t, h)."""
        return np.asarray(trunk @ self.weights + self.constant, np.float32)


def write_readout(target: Path, found: FilmReadout) -> str:
    """Seal a readout in a folder and return its identity.

    Raises
    ------
    BundleError
        A value is no number.
    """

    def write(folder: Path) -> None:
        (folder / _ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(found.about), indent=1) + b"\n")
        save_file(
            {
                "weights": found.weights,
                "constant": found.constant,
                "held_out": found.held_out,
                "penalties": found.penalties,
            },
            folder / _VALUES,
        )

    return seal(target, READOUT_SCHEMA, write)


def open_readout(folder: Path) -> FilmReadout:
    """Open a readout.

    Raises
    ------
    BundleError
        There is none, its content is not what its manifest says, or it does not fit together.
    """
    identity = verify(folder, READOUT_SCHEMA)
    raw = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    about: ReadoutTable = checked(raw, ReadoutTable, source=str(folder / _ABOUT), error=BundleError)
    tensors = read_tensors(folder / _VALUES)
    count = len(about.parcels)
    for name in ("weights", "constant", "held_out", "penalties"):
        shape = tensors[name].shape if name in tensors else None
        if shape is None or shape[-1:] != (count,) or len(shape) != (2 if name == "weights" else 1):
            raise BundleError(f"{folder / _VALUES}: expected {name!r} of {count} parcels, got shape {shape}")
    return FilmReadout(
        about=about,
        weights=tensors["weights"],
        constant=tensors["constant"],
        held_out=tensors["held_out"],
        penalties=tensors["penalties"],
        identity=identity,
    )
