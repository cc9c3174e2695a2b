"""The tiny family: small ONNX networks that this project trains itself."""

from __future__ import annotations

from pathlib import Path

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.families.tiny.tiny_stages import load_stages, open_stage
from rtdecode.decode.runtime.backends import Backend
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


class TinyFamily:
    """A `Family` of ONNX stages."""

    description = TinyDescription
    counts_steps = True

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Embed the pictures of a folder, or take the pack's categories where there is none."""
        return embed_candidates(load_stages(pack, threads=threads), stimuli)

    def pipeline(
        self,
        pack: EnginePack,
        settings: DecodeSettings,
        backend: Backend,
        *,
        seed: int,
    ) -> TinyPipeline:
        """Load the stages; see `Family.pipeline`."""
        stages = load_stages(pack, threads=settings.threads)
        return TinyPipeline(stages, seed=seed, prior_steps=settings.prior_steps, unclip_steps=settings.unclip_steps)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load the embedder, which takes pictures of the pack's own size."""
        engine = open_stage(pack, "embedder", threads=threads)
        picture = pack.described(TinyDescription).picture
        size = picture.height, picture.width
        return Embedder(run=lambda pictures: engine.run({"image": pictures})["tokens"], picture_px=size)


FAMILY = TinyFamily()
