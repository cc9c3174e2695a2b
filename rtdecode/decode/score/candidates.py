"""What a trial may have shown: pictures of a folder, or the categories themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rtdecode.errors import BundleError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Stimuli, what a brain is asked to predict of them, and their categories.

    Attributes
    ----------
    names : tuple of str
        Stimulus identifiers.
    tokens : ndarray of shape (n, t, d), float32
    category : ndarray of shape (n,), int64
        Of each stimulus, its place in `categories`.
    categories : tuple of str
    prototypes : ndarray of shape (c, t, d), float32
        Mean tokens of each category.
    groups : tuple of slice
        Token groups, as slices of the flattened tokens.
    group_names : tuple of str
        What evidence calls each of them; empty where it does not tell them apart, as where there is one.
    """

    names: tuple[str, ...]
    tokens: NDArray[np.float32]
    category: NDArray[np.int64]
    categories: tuple[str, ...]
    prototypes: NDArray[np.float32]
    groups: tuple[slice, ...]
    group_names: tuple[str, ...] = ()

    def index(self, name: str | None) -> int | None:
        """Row of a stimulus, None if it is unknown."""
        return self.names.index(name) if name in self.names else None

    def without(self, names: Collection[str]) -> Candidates:
        """Return those that are not among `names`, or all if fewer than two would be left."""
        rows = [i for i, name in enumerate(self.names) if name not in names]
        if len(rows) < 2:
            return self
        left = tuple(self.names[i] for i in rows)
        return replace(self, names=left, tokens=self.tokens[rows], category=self.category[rows])


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
