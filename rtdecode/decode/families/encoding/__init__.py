"""Packs that predict the brain: MIRAGE (encoding) from films, GNet from pictures; no session decodes by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.published_pack import PublishedDescription
from rtdecode.decode.pipeline import Pipeline
from rtdecode.decode.runtime.backends import Backend, import_torch_runtime, torch_place
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


class MirageEncodingDescription(PublishedDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``; `tokens` are the features of one modality in a frame: layers, and values of each.

    Attributes
    ----------
    subjects : list of str
        Of the heads.
    numerics : str
        Versions of the package x-transformers that compute as these weights were trained.
    """

    family = "mirage-encoding"

    subjects: list[str]
    numerics: str


class GNetDescription(PublishedDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``; `tokens` are the channels of both feature maps; see `PublishedDescription`."""

    family = "gnet"


class EncodingFamily:
    """A `Family` of packs that predict the brain from a stimulus.

    Parameters
    ----------
    description : type of PublishedDescription
    """

    def __init__(self, description: type[PublishedDescription]) -> None:
        self.description = description

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Refuse; see the class."""
        raise _other_way(pack)

    def pipeline(self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int) -> Pipeline:
        """Refuse; see the class."""
        raise _other_way(pack)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Refuse; see the class."""
        raise _other_way(pack)


class GNetFamily(EncodingFamily):
    """GNet describes pictures as well: by the features that it predicts all of its participants by."""

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load it; a participant of one's own is fitted to its tokens (n, 25, channels) by ``fit-encoder --pack``."""
        with import_torch_runtime(pack, threads):
            import torch

            from rtdecode.decode.networks.build import load
            from rtdecode.decode.networks.gnet import GNET_PX
        device, _ = torch_place()
        network = load(pack, "gnet", device=device, dtype=torch.float32)

        def run(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                return np.asarray(network.seen(torch.from_numpy(pictures).to(device)).cpu().numpy())

        return Embedder(run=run, picture_px=(GNET_PX, GNET_PX))


MIRAGE_ENCODING = EncodingFamily(MirageEncodingDescription)
GNET = GNetFamily(GNetDescription)


def _other_way(pack: EnginePack) -> EngineError:
    return EngineError(
        f"pack {pack.name}: expected a pack that decodes, got one of kind {pack.description.kind}, which predicts the "
        "brain from a stimulus: see docs/how-to/film.md for what it is good for in a session"
    )
