"""The tiny imagery family: high-level heads alone, drawn by the networks of a tiny pack."""

from __future__ import annotations

from pathlib import Path

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.tiny import FAMILY as TINY
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.families.tiny.tiny_stages import TinyStages, load_stages
from rtdecode.decode.families.tiny_imagery.tiny_imagery_description import TinyImageryDescription
from rtdecode.decode.families.tiny_imagery.tiny_imagery_pipeline import TinyImageryPipeline
from rtdecode.decode.families.tiny_imagery.what_is_imagined import head_candidates
from rtdecode.decode.runtime.backends import Backend
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.settings import DecodeSettings


class TinyImageryFamily:
    """A `Family` that predicts what a picture is of and how that differs from its kind, not where it lies."""

    description = TinyImageryDescription
    counts_steps = True

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Embed the pictures of a folder, or take the categories where there is none."""
        return head_candidates(embed_candidates(_stages(pack, threads), stimuli))

    def pipeline(
        self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int
    ) -> TinyImageryPipeline:
        """Load the stages; see `Family.pipeline`."""
        stages = _stages(pack, settings.threads)
        tiny = TinyPipeline(stages, seed=seed, prior_steps=settings.prior_steps, unclip_steps=settings.unclip_steps)
        return TinyImageryPipeline(tiny, stages)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load the embedder of the tiny pack, which judges pictures."""
        return TINY.embedder(_generator(pack), threads=threads)


FAMILY = TinyImageryFamily()


def _stages(pack: EnginePack, threads: int) -> TinyStages:
    return load_stages(_generator(pack), threads=threads)


def _generator(pack: EnginePack) -> EnginePack:
    said = pack.described(TinyImageryDescription)
    found = open_pack(said.generator)
    if found.identity != said.generator_identity:
        raise EngineError(
            f"pack {pack.name}: expected pack {said.generator} {said.generator_identity[:12]}, got "
            f"{found.identity[:12]}: seal it again for that one"
        )
    return found
