"""MindEye1 (Scotti et al. 2023): betas to tokens, retrieval, a blurry picture and a picture."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from rtdecode.decode.arrays import Float32
from rtdecode.decode.families.family import DecodedRecord, Embedder, RecordDecoder
from rtdecode.decode.families.mindeye1.mindeye1_decoder import INTERNAL, MindEye1, OwnNetwork, own_network
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorTable, MindEye1Description
from rtdecode.decode.families.mindeye1.mindeye1_pipeline import MindEye1Pipeline
from rtdecode.decode.families.network_embedder import network_embedder
from rtdecode.decode.families.stimulus_folder import read_token_candidates
from rtdecode.decode.runtime.backends import Backend, choose, import_torch_runtime
from rtdecode.decode.runtime.runner import Runner, compiled_runner
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings

_TOKENS, _POOLED = 1, 2
"""Places of the normed and projected tokens, and of the pooled one, among what CLIP's tower gives."""


class MindEye1Family:
    """A `Family` whose participants may have a whole network of their own, which their bundle carries."""

    description = MindEye1Description
    counts_steps = True
    guides = True

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Read what ``rtdecode engines embed`` has written beside the pictures: CLIP-L's tokens."""
        return read_token_candidates(pack, stimuli)

    def pipeline(
        self,
        pack: EnginePack,
        settings: DecodeSettings,
        backend: Backend,
        *,
        seed: int,
    ) -> MindEye1Pipeline:
        """Load the networks; see `Family.pipeline`."""
        table = pack.described(MindEye1Description).generator
        if table is not None:
            asked = {"steps": settings.unclip_steps, "guidance": settings.unclip_guidance}
            table = structs.replace(table, **{name: value for name, value in asked.items() if value is not None})
        mind = load_mindeye1(
            pack, backend=backend, prior_steps=settings.prior_steps, generator=table, threads=settings.threads
        )

        def open_network(network: EnginePack) -> OwnNetwork:
            own = choose(backend.name if backend.name == "torch" else "auto", network)
            return own_network(network, _runner(network, own, settings.threads), settings.prior_steps)

        return MindEye1Pipeline(mind, open_network, seed=seed)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load what embeds pictures; see `Family.embedder`."""
        one = pack.description.tokens.count == 1
        return network_embedder(pack, threads=threads, output=_POOLED if one else _TOKENS)

    def record_decoder(self, pack: EnginePack, *, threads: int) -> RecordDecoder:
        """Load what decodes recorded betas; see `rtdecode.decode.families.family.record_decoder`."""
        mind = load_mindeye1(pack, threads=threads)
        if "picture" in mind.absent:
            raise EngineError(f"pack {pack.name}: draws no picture: import it with --generator")

        def decode(betas: Float32, seed: int) -> DecodedRecord:
            found = mind.decode(betas, seed=seed)
            assert found.picture is not None
            return DecodedRecord(picture=found.picture, caption="", tokens=found.retrieval.reshape(-1))

        return decode


FAMILY = MindEye1Family()


def load_mindeye1(
    pack: EnginePack,
    *,
    backend: Backend | None = None,
    prior_steps: int | None = None,
    generator: GeneratorTable | None = None,
    threads: int = 1,
) -> MindEye1:
    """Load a MindEye1 pack.

    Parameters
    ----------
    pack : EnginePack
    backend : Backend or None
        None: as `choose` does by itself.
    prior_steps : int or None
        As of `MindEye1`.
    generator : GeneratorTable or None
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
    runner = _runner(pack, backend or choose("auto", pack), threads)
    return MindEye1(pack, runner, prior_steps=prior_steps, generator=generator)


def _runner(pack: EnginePack, backend: Backend, threads: int) -> Runner:
    if backend.name != "torch":
        return compiled_runner(pack, backend.name, threads=threads, internal=INTERNAL)
    with import_torch_runtime(pack, threads):
        from rtdecode.decode.runtime.torch_runner import torch_runner
    return torch_runner(pack, device=backend.device, precision=backend.precision, internal=INTERNAL)
