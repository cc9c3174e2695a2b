"""From image tokens to what published participants' first layers give: where a new participant begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import Float32
from rtdecode.decode.families.published_pack import PublishedDescription
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import Count
from rtdecode.typed import Table

LATENTS = "latents"
"""Table of ``pack.toml`` that describes the map, and tensor of the embeddings that holds what it gives."""
_BLOCK = 1 << 23


class LatentsTable(Table, frozen=True, kw_only=True):
    """The map from image tokens to hidden values, as ``rtdecode engines latents`` has learned it.

    Attributes
    ----------
    file : str
        Of the map's arrays.
    components : int
        Principal components of the tokens.
    pictures, trials : int
        Learned from.
    participants : list of int
        Ridge layers that the trials are of.
    penalty : float
        Of the ridge regression.
    held_out_r2 : float
        Over pictures left out, one at a time.
    """

    file: str
    components: Count
    pictures: Count
    trials: Count
    participants: list[int]
    penalty: float
    held_out_r2: float


class MapsLatents(PublishedDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Description of a pack that may hold such a map.

    Attributes
    ----------
    latents : LatentsTable or None
        None before ``rtdecode engines latents``.
    """

    latents: LatentsTable | None = None

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        if self.latents is not None:
            yield "latents.file", self.latents.file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentMap:
    """Ridge regression on principal components of image tokens.

    Attributes
    ----------
    token_mean : ndarray of shape (m,), float32
        Of all tokens of a picture behind each other.
    basis : ndarray of shape (k, m), float16 or float32
        Orthonormal components.
    weights : ndarray of shape (k, hidden), float32
    intercept : ndarray of shape (hidden,), float32
    """

    token_mean: Float32
    basis: NDArray[np.floating[Any]]
    weights: Float32
    intercept: Float32

    def __call__(self, tokens: NDArray[np.floating[Any]]) -> Float32:
        """Hidden values (n, hidden), float32, of pictures with tokens (n, t, d), computed in float32.

        Raises
        ------
        EngineError
            The tokens are of another layout.
        """
        components, width = self.basis.shape
        got = math.prod(tokens.shape[1:])
        if tokens.ndim != 3 or got != width:
            raise EngineError(
                f"expected tokens (n, t, d) with {width} values of each picture, got shape {tokens.shape}: were they "
                "embedded by another pack?"
            )
        rows = tokens.reshape(len(tokens), width)
        scores = np.zeros((len(rows), components), np.float32)
        step = max(1, _BLOCK // max(len(rows), components))  # neither basis nor tokens are whole in float32
        for at in range(0, width, step):
            part = slice(at, at + step)
            scores += (rows[:, part] - self.token_mean[part]) @ self.basis[:, part].T.astype(np.float32)
        return scores @ self.weights + self.intercept


def latents_of(pack: EnginePack) -> LatentsTable | None:
    """Return what ``pack.toml`` says of the map; None where the pack has none, or is of another family."""
    said = pack.description
    return said.latents if isinstance(said, MapsLatents) else None


def latent_map(pack: EnginePack) -> LatentMap:
    """Load the map of a pack.

    Raises
    ------
    EngineError
        The pack has none.
    """
    table = latents_of(pack)
    if table is None:
        raise EngineError(
            f"pack {pack.name}: expected a table {LATENTS}, got none: rtdecode engines latents {pack.folder}"
        )
    return LatentMap(**pack.tensors(table.file))
