"""MindEye1 (Scotti et al. 2023): betas to tokens, retrieval and a blurry picture."""

from __future__ import annotations

from pathlib import Path

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.mindeye1.mindeye1_decoder import MindEye1
from rtdecode.decode.families.mindeye1.mindeye1_description import MindEye1Description
from rtdecode.decode.families.network_embedder import network_embedder
from rtdecode.decode.pipeline import Pipeline
from rtdecode.decode.runtime.backends import Backend, choose, import_torch_runtime
from rtdecode.decode.runtime.runner import compiled_runner
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


class MindEye1Family:
    """A `Family` whose packs no session runs yet: each participant has a whole network, which no visit can train."""

    description = MindEye1Description

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Refuse; see the class."""
        raise _not_live(pack)

    def pipeline(
        self,
        pack: EnginePack,
        settings: DecodeSettings,
        backend: Backend,
        *,
        seed: int,
    ) -> Pipeline:
        """Refuse; see the class."""
        raise _not_live(pack)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load what embeds pictures; see `Family.embedder`."""
        return network_embedder(pack, threads=threads)


FAMILY = MindEye1Family()


def load_mindeye1(
    pack: EnginePack, *, backend: Backend | None = None, prior_steps: int | None = None, threads: int = 1
) -> MindEye1:
    """Load a MindEye1 pack.

    Parameters
    ----------
    pack : EnginePack
    backend : Backend or None
        None: as `choose` does by itself.
    prior_steps : int or None
        As of `MindEye1`.
    threads : int
        CPU threads.

    Raises
    ------
    EngineError
        The pack lacks what every picture needs, or the backend is not installed.
    BundleError
        A file is not what ``pack.toml`` describes.
    """
    pack.described(MindEye1Description)
    backend = backend or choose("auto", pack)
    if backend.name != "torch":
        return MindEye1(pack, compiled_runner(pack, backend.name, threads=threads), prior_steps=prior_steps)
    with import_torch_runtime(pack, threads):
        from rtdecode.decode.runtime.torch_runner import torch_runner
    runner = torch_runner(pack, device=backend.device, precision=backend.precision)
    return MindEye1(pack, runner, prior_steps=prior_steps)


def _not_live(pack: EnginePack) -> EngineError:
    return EngineError(
        f"pack {pack.name}: expected a pack that a session can run, got one of kind mindeye1: each of its participants "
        "has a whole network, which no visit can train"
    )
