"""What a trial may have shown: pictures of a folder, or the categories themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rtdecode.decode.stages import Stages
from rtdecode.errors import BundleError

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Stimuli and their tokens.

    Attributes
    ----------
    names : tuple of str
        Stimulus identifiers.
    tokens : ndarray of shape (n, t, d), float32
    """

    names: tuple[str, ...]
    tokens: NDArray[np.float32]

    def index(self, name: str | None) -> int | None:
        """Row of a stimulus, None if it is unknown."""
        return self.names.index(name) if name in self.names else None


def load_candidates(stages: Stages, stimuli: Path | None) -> Candidates:
    """Embed the pictures of a folder, or take the category prototypes.

    Parameters
    ----------
    stages : Stages
    stimuli : Path or None
        Folder of pictures named ``<stimulus>.png``; None takes the pack's categories.

    Raises
    ------
    BundleError
        The folder holds no picture, or one that cannot be read.
    """
    if stimuli is None:
        return Candidates(names=stages.categories, tokens=stages.prototypes)
    paths = sorted(stimuli.glob("*.png"))
    if not paths:
        raise BundleError(f"{stimuli}: expected pictures named <stimulus>.png, found none")
    parts = [
        embed_pictures(stages, np.stack([read_picture(path, stages.picture_px) for path in paths[i : i + _BATCH]]))
        for i in range(0, len(paths), _BATCH)
    ]
    return Candidates(names=tuple(path.stem for path in paths), tokens=np.concatenate(parts))


def embed_pictures(stages: Stages, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tokens (n, t, d) of pictures (n, height, width, 3) of the pack's size."""
    scaled = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
    return stages.embedder.run({"image": scaled})["tokens"].astype(np.float32, copy=False)


def read_picture(path: Path, picture_px: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a picture (height, width, 3), reduced to a pack's height and width or, without, as it is.

    Raises
    ------
    BundleError
        It cannot be read.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise BundleError(f"{path}: not a readable picture: {error}") from None
    if picture_px is None:
        return np.asarray(rgb, dtype=np.uint8)
    height, width = picture_px
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.uint8)
