"""MIRAGE's decoder of what a person imagines (Kneeland et al. 2025): five ridges and Stable Cascade.

Not to be mixed up with the encoding model of the same name, which predicts brain responses to films.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rtdecode.decode.arrays import Float32
from rtdecode.decode.families.family import DecodedRecord, Embedder, RecordDecoder
from rtdecode.decode.families.mirage_imagery.frozen_statistics import FrozenStatistics
from rtdecode.decode.families.mirage_imagery.head_targets import head_embedder
from rtdecode.decode.families.mirage_imagery.mirage_imagery_decoder import INTERNAL, MirageImagery
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import MirageImageryDescription
from rtdecode.decode.families.mirage_imagery.mirage_imagery_pipeline import MirageImageryPipeline
from rtdecode.decode.families.stimulus_folder import read_token_candidates
from rtdecode.decode.runtime.backends import Backend, choose, import_torch_runtime
from rtdecode.decode.runtime.residency import Residency
from rtdecode.decode.runtime.runner import compiled_runner
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


class MirageImageryFamily:
    """A `Family` of linear heads onto several embeddings at once."""

    description = MirageImageryDescription
    offloads = True

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Read what ``rtdecode engines embed`` has written beside the pictures: the targets of each head."""
        return read_token_candidates(pack, stimuli)

    def pipeline(
        self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int
    ) -> MirageImageryPipeline:
        """Load the networks; see `Family.pipeline`."""
        mind = load_mirage_imagery(pack, backend=backend, threads=settings.threads, weights_gb=settings.weights_gb)
        return MirageImageryPipeline(mind, seed=seed)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load what makes the heads' targets of pictures."""
        return head_embedder(pack, threads=threads)

    def record_decoder(self, pack: EnginePack, *, threads: int) -> RecordDecoder:
        """Load what decodes recorded betas; see `rtdecode.decode.families.family.record_decoder`."""
        mind = load_mirage_imagery(pack, threads=threads)
        if not mind.draws or not mind.voxels:
            raise EngineError(
                f"pack {pack.name}: expected heads and Stable Cascade: import it with --ridges and stages"
            )

        def decode(betas: Float32, seed: int) -> DecodedRecord:
            found = mind.decode(betas, seed=seed)
            assert found.picture is not None
            tokens = found.heads.get("retrieval")
            return DecodedRecord(
                picture=found.picture,
                caption=found.caption or "",
                tokens=None if tokens is None else tokens.reshape(-1),
            )

        return decode


FAMILY = MirageImageryFamily()


def load_mirage_imagery(
    pack: EnginePack,
    *,
    backend: Backend | None = None,
    statistics: Mapping[str, FrozenStatistics] | None = None,
    threads: int = 1,
    weights_gb: float | None = None,
) -> MirageImagery:
    """Load a pack of MIRAGE's imagery decoder.

    Parameters
    ----------
    pack : EnginePack
    backend : Backend or None
        None: as `choose` does by itself.
    statistics : mapping of str to FrozenStatistics, or None
        As of `MirageImagery`.
    threads : int
        CPU threads.
    weights_gb : float or None
        Weights that the device holds at once, where torch runs the networks: others wait in the host's memory until
        they are used. None: all stay on the device.

    Raises
    ------
    EngineError
        The pack lacks a stage that it needs, or the backend is not installed.
    BundleError
        A file is not what ``pack.toml`` describes.
    """
    pack.described(MirageImageryDescription)
    backend = backend or choose("auto", pack)
    if backend.name != "torch":
        runner = compiled_runner(pack, backend.name, threads=threads, internal=INTERNAL)
        return MirageImagery(pack, runner, statistics=statistics)
    with import_torch_runtime(pack, threads):
        from rtdecode.decode.runtime.torch_runner import torch_runner
    residency = None if weights_gb is None else Residency(round(weights_gb * 1e9))
    runner = torch_runner(
        pack, device=backend.device, precision=backend.precision, internal=INTERNAL, residency=residency
    )
    return MirageImagery(pack, runner, statistics=statistics)
