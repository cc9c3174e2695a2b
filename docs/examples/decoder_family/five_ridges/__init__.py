"""A family of decoders: five ridges, one for each band of detail, and a generator that adds the bands up.

A picture's tokens are five rows, its values in five bands from coarse to fine. Each row is a token group, so that
calibration fits a ridge of its own, with its own penalty, to each. The picture is the sum of the predicted bands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.pipeline import Embedded
from rtdecode.decode.runtime.backends import Backend
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates, read_picture
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PACK_SCHEMA, PackDescription, TokenTable, write_description
from rtdecode.packs.sealed import seal
from rtdecode.settings import DecodeSettings
from rtdecode.stimuli import pictures_in

Float32 = NDArray[np.float32]
BANDS = 5


class FiveRidgesDescription(PackDescription, frozen=True, kw_only=True):
    """Content of ``pack.toml``: the file of the bands, and the height and width of pictures in pixels."""

    family = "five-ridges"

    bands: str
    side: int

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        yield "bands", self.bands


class FiveRidges:
    """The family; see `Family`."""

    description = FiveRidgesDescription

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Split the pictures of a folder into bands; the category is the name up to the underscore."""
        if stimuli is None:
            raise EngineError(f"pack {pack.name} needs decode.stimuli: a folder of <category>_<name>.png")
        found = pictures_in(stimuli)
        side = pack.described(FiveRidgesDescription).side
        pictures = [np.asarray(read_picture(path, (side, side)), np.float32) / 255 for path in found.values()]
        tokens = self._tokens(pack, np.stack(pictures).transpose(0, 3, 1, 2))
        of = [name.partition("_")[0] for name in found]
        categories = tuple(sorted(set(of)))
        category = np.array([categories.index(name) for name in of])
        width = tokens.shape[2]
        return Candidates(
            names=tuple(found),
            tokens=tokens,
            category=category,
            categories=categories,
            prototypes=np.stack([tokens[category == i].mean(0) for i in range(len(categories))]),
            groups=tuple(slice(i * width, (i + 1) * width) for i in range(BANDS)),
        )

    def pipeline(self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int) -> SumOfBands:
        """Load the bands."""
        return SumOfBands(_bands(pack), pack.described(FiveRidgesDescription).side)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Embed pictures."""
        side = pack.described(FiveRidgesDescription).side
        return Embedder(run=lambda pictures: self._tokens(pack, pictures), picture_px=(side, side))

    def _tokens(self, pack: EnginePack, pictures: Float32) -> Float32:
        grey = pictures.mean(1).reshape(len(pictures), -1)
        return np.asarray(np.einsum("bdp,np->nbd", _bands(pack), grey), np.float32)


FAMILY = FiveRidges()


class SumOfBands:
    """The generator; see `Pipeline`."""

    absent = ("caption",)

    def __init__(self, bands: Float32, side: int) -> None:
        self._bands = bands
        self._side = side
        self._adapter: Adapter | None = None

    def take(self, adapter: Adapter) -> None:
        """Take a participant."""
        self._adapter = adapter

    def embed(self, beta: Float32) -> Embedded:
        """Predict the bands of a beta."""
        if self._adapter is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        components = self._adapter.predict(beta)
        tokens = (components @ self._adapter.basis + self._adapter.token_mean).reshape(BANDS, -1)
        return Embedded(components=components, tokens=tokens, state=None)

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Float32:
        """Take the bands as they were predicted."""
        return np.asarray(embedded.tokens, np.float32)

    def caption(self, settled: Float32) -> None:
        """There is none."""

    def picture(self, settled: Float32, trial: str) -> NDArray[np.uint8]:
        """Add the bands up: a grey picture."""
        grey = np.einsum("bdp,bd->p", self._bands, settled).reshape(self._side, self._side)
        rounded = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
        return np.repeat(rounded[..., None], 3, axis=2)


def _bands(pack: EnginePack) -> Float32:
    """Read the bands' orthonormal patterns: shape (5, patterns, pixels)."""
    return pack.tensors(pack.described(FiveRidgesDescription).bands)["patterns"]


def write_pack(folder: Path, *, side: int = 16, patterns: int = 12) -> str:
    """Seal a pack whose bands are the cosines of rising frequency."""
    at = (np.arange(side) + 0.5) / side
    pairs = sorted(np.ndindex(side, side), key=lambda pair: sum(pair))[: BANDS * patterns]
    waves = np.stack([np.outer(np.cos(np.pi * u * at), np.cos(np.pi * v * at)).ravel() for u, v in pairs])
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)

    def write(draft: Path) -> None:
        save_file({"patterns": waves.reshape(BANDS, patterns, -1).astype(np.float32)}, draft / "bands.safetensors")
        tokens = TokenTable(count=BANDS, channels=patterns)
        said = FiveRidgesDescription(
            schema=PACK_SCHEMA,
            name=folder.name,
            kind="five-ridges",
            tokens=tokens,
            stages={},
            bands="bands.safetensors",
            side=side,
        )
        write_description(draft, said)

    return seal(folder, PACK_SCHEMA, write)
