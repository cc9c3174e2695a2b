"""Packs that predict the brain: MIRAGE (encoding) from films, GNet from pictures; no session decodes by one."""

from __future__ import annotations

from pathlib import Path

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.published_pack import PublishedDescription
from rtdecode.decode.pipeline import Pipeline
from rtdecode.decode.runtime.backends import Backend
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


MIRAGE_ENCODING = EncodingFamily(MirageEncodingDescription)
GNET = EncodingFamily(GNetDescription)


def _other_way(pack: EnginePack) -> EngineError:
    return EngineError(
        f"pack {pack.name}: expected a pack that decodes, got one of kind {pack.description.kind}, which predicts the "
        "brain from a stimulus: see docs/how-to/film.md for what it is good for in a session"
    )
