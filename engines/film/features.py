"""Features of a film, half second by half second: a sealed folder that the extraction writes and the encoder reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rtdecode.decode.families.encoding.film_windows import FRAME_HZ
from rtdecode.decode.networks.film_encoder import MODALITIES
from rtdecode.errors import BundleError
from rtdecode.packs.sealed import verify
from rtdecode.typed import Table, checked

FEATURES_SCHEMA = "rtdecode.film-features/1"
ABOUT = "features.json"
VALUES = "features"
"""Name of the tensor in each modality's file, of shape (frames, layers, values)."""
SUFFIX = ".features"
"""Added to the name of a film: the folder of its features beside it."""


class FeatureTable(Table, frozen=True, kw_only=True):
    """Content of ``features.json``.

    Attributes
    ----------
    film : str
        Name of the film.
    duration_s : float
        Seconds.
    layers, values : int
        Hidden states of the language model, and numbers in each.
    absent : dict of str to str
        Modalities without features, and why.
    sources : dict of str to str
        SHA-256 of ``film``, ``transcript`` and ``backbone``, as far as there are.
    """

    film: str
    duration_s: float
    layers: int
    values: int
    absent: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Frames of the film; the last may be begun only."""
        return count_frames(self.duration_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilmFeatures:
    """Verified features, read stretch by stretch: a film's do not fit into memory.

    Attributes
    ----------
    folder : Path
    about : FeatureTable
    identity : str
        SHA-256 of the manifest.
    """

    folder: Path
    about: FeatureTable
    identity: str

    @property
    def present(self) -> tuple[str, ...]:
        """Modalities that have features."""
        return tuple(name for name in MODALITIES if name not in self.about.absent)

    def stretch(self, modality: str, frames: range) -> Tensor:
        """Read frames of a modality, shape (layers, frames, values), float32; zero outside of the film or absent.

        Raises
        ------
        BundleError
            The file cannot be read.
        """
        about = self.about
        made = torch.zeros(len(frames), about.layers, about.values)
        first, last = max(frames.start, 0), min(frames.stop, about.frames)
        if modality in self.present and first < last:
            path = self.folder / f"{modality}.safetensors"
            try:
                with ExitStack() as stack:
                    values = stack.enter_context(safe_open(path, framework="pt")).get_slice(VALUES)
                    made[first - frames.start : last - frames.start] = values[first:last].float()
            except (OSError, SafetensorError, RuntimeError) as error:
                raise BundleError(f"{path}: not readable features of this film: {error}") from None
        return made.transpose(0, 1)


def count_frames(duration_s: float) -> int:
    """Half seconds of a film, the last as far as it goes."""
    return int(-(-duration_s * FRAME_HZ // 1))


def open_features(path: Path) -> FilmFeatures:
    """Open a folder of features, or the one beside a film.

    Raises
    ------
    BundleError
        There is none, or its content is not what its manifest says.
    """
    beside = path.with_name(path.name + SUFFIX)
    folder = beside if path.is_file() and beside.is_dir() else path
    if folder.is_file():
        raise BundleError(
            f"{path}: expected features of this film in {beside.name} beside it, found none: make them with "
            f"rtdecode engines features {path} --backbone MODEL"
        )
    identity = verify(folder, FEATURES_SCHEMA)
    raw = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    about: FeatureTable = checked(raw, FeatureTable, source=str(folder / ABOUT), error=BundleError)
    if not set(about.absent) < set(MODALITIES):
        raise BundleError(f"{folder / ABOUT}: absent: expected some of {', '.join(MODALITIES)}, but not all")
    for modality in set(MODALITIES) - set(about.absent):
        _check(folder / f"{modality}.safetensors", (about.frames, about.layers, about.values))
    return FilmFeatures(folder=folder, about=about, identity=identity)


def write_about(folder: Path, about: FeatureTable) -> None:
    """Write ``features.json``."""
    (folder / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n")


def read_whole(path: Path) -> Mapping[str, Any]:
    """Header of a modality's file: what ``safe_open`` says of its tensor."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _check(path: Path, expected: tuple[int, ...]) -> None:
    try:
        found = read_whole(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file: {error}") from None
    if found != {VALUES: expected}:
        raise BundleError(f"{path}: expected one tensor {VALUES!r} of shape {expected}, got {dict(found)}")
