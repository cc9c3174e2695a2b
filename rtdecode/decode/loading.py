"""From an opened pack to what a session decodes and calibrates with, whatever family it is of."""

from __future__ import annotations

from pathlib import Path

from rtdecode.decode.decoder import Decoder
from rtdecode.decode.families.family import Embedder, Family, family_of
from rtdecode.decode.pipeline import HasFinal, Pipeline
from rtdecode.decode.runtime.backends import Backend, choose
from rtdecode.decode.score.candidates import Candidates
from rtdecode.decode.score.disk_pool import DiskPool
from rtdecode.decode.score.pool import ImagePool, open_pool, tokens_in
from rtdecode.decode.score.remote_pool import RemotePool
from rtdecode.decode.score.search import PictureSearch
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


def load_decoder(pack: EnginePack, settings: DecodeSettings | None = None, *, seed: int = 0) -> Decoder:
    """Load the networks of a pack, and what a trial may have shown.

    Parameters
    ----------
    pack : EnginePack
    settings : DecodeSettings or None
        All but its pack and bundle; None takes the defaults.
    seed : int
        Of the session: fixes, with the trial, the noise that a picture starts from.

    Raises
    ------
    EngineError, BundleError
        The pack, the stimuli or the pool cannot be used.
    """
    settings = settings or DecodeSettings()
    family, backend = family_of(pack), choose(settings.backend, pack)
    _refuse_what_it_cannot(pack, settings, family, backend)
    pool = _pool(settings, pack)
    candidates = family.candidates(pack, settings.stimuli, threads=settings.threads)
    pipeline = family.pipeline(pack, settings, backend, seed=seed)
    return Decoder(pack, candidates, pipeline, None if pool is None else _search(pool, settings, pack, pipeline))


def _refuse_what_it_cannot(pack: EnginePack, settings: DecodeSettings, family: Family, backend: Backend) -> None:
    """Refuse settings that this family, or what runs it, does not know.

    Raises
    ------
    EngineError
        It says of which packs they are.
    """
    steps = settings.prior_steps is not None or settings.unclip_steps is not None
    wanted = {
        "finishes": ("best_of and decode.finish", "MindEye2", settings.best_of > 1 or settings.finish != "none"),
        "counts_steps": ("prior_steps and decode.unclip_steps", "tiny, MindEye1 and MindEye2", steps),
        "guides": ("unclip_guidance", "MindEye2 and MindEye1", settings.unclip_guidance is not None),
        "offloads": ("weights_gb", "MIRAGE (imagery)", settings.weights_gb is not None),
    }
    for able, (names, families, asked) in wanted.items():
        if asked and not getattr(family, able, False):
            raise EngineError(
                f"pack {pack.name}: decode.{names}: for packs of {families}, this is one of kind "
                f"{pack.description.kind}: leave it out"
            )
    if settings.weights_gb is not None and backend.name != "torch":
        raise EngineError(
            f"pack {pack.name}: decode.weights_gb: expected the backend torch, got {backend.name} ({backend.reason}): "
            "leave it out, or choose decode.backend"
        )


def _pool(settings: DecodeSettings, pack: EnginePack) -> ImagePool | DiskPool | RemotePool | None:
    if settings.pool_service:
        return RemotePool(settings.pool_service, timeout_s=settings.pool_timeout_s)
    return None if settings.pool is None else _open_pool(settings.pool, pack)


def _search(
    pool: ImagePool | DiskPool | RemotePool, settings: DecodeSettings, pack: EnginePack, pipeline: Pipeline
) -> PictureSearch:
    """Ask a pool of final embeddings with these, and any other with all tokens."""
    shape = pack.description.tokens.count, pack.description.tokens.channels
    final_width = pipeline.final_width if isinstance(pipeline, HasFinal) else 0
    width = pool.description.width if isinstance(pool, DiskPool) else 0
    if width not in (0, shape[0] * shape[1], final_width):
        final = f", or {final_width} of the final embedding" if final_width else ""
        raise EngineError(
            f"{settings.pool}: expected a pool of {shape[0]} x {shape[1]} values as pack {pack.name} decodes{final}, "
            f"got one of {width}"
        )
    by_final = final_width if isinstance(pool, RemotePool) else width == final_width != shape[0] * shape[1]
    return PictureSearch(
        pool=pool,
        final=pipeline.final if by_final and isinstance(pipeline, HasFinal) else None,
        tokens=None if settings.pool_tokens is None else tokens_in(settings.pool_tokens, pack),
    )


def _open_pool(path: Path, pack: EnginePack) -> ImagePool | DiskPool:
    if not path.is_dir():
        return open_pool(path, pack)
    pool = DiskPool(path)
    embedder = pack.description.stages.get("embedder")
    if embedder is None or pool.description.embedder != pack.digest(embedder.file):
        raise EngineError(f"{path}: expected pictures embedded by the embedder of pack {pack.name}; embed them anew")
    return pool


def load_candidates(pack: EnginePack, stimuli: Path | None, *, threads: int = 1) -> Candidates:
    """Load what a trial may have shown, without the networks that decode; see `Family.candidates`."""
    return family_of(pack).candidates(pack, stimuli, threads=threads)


def load_embedder(pack: EnginePack, *, threads: int = 1) -> Embedder:
    """Load the embedder of a pack; see `Family.embedder`."""
    return family_of(pack).embedder(pack, threads=threads)
