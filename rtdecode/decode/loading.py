"""From an opened pack to what a session decodes and calibrates with, whatever kind of pack it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rtdecode.bundle import EnginePack
from rtdecode.decode.backends import KIND, choose, load_mindeye2
from rtdecode.decode.candidates import Candidates, embed_candidates
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.mindeye2.generator import MindEye2Generator
from rtdecode.decode.mindeye2.recipe import recipe_of
from rtdecode.decode.mindeye2.stimuli import read_stimuli
from rtdecode.decode.pool import open_pool
from rtdecode.decode.stages import load_stages
from rtdecode.decode.tiny import TinyGenerator
from rtdecode.errors import EngineError


def load_decoder(
    pack: EnginePack,
    *,
    stimuli: Path | None = None,
    pool: Path | None = None,
    backend: str = "auto",
    threads: int = 1,
    seed: int = 0,
    prior_steps: int | None = None,
    unclip_steps: int | None = None,
) -> Decoder:
    """Load the networks of a pack, and what a trial may have shown.

    Parameters
    ----------
    pack : EnginePack
    stimuli : Path or None
        As of `load_candidates`.
    pool : Path or None
        Embeddings of pictures to name the nearest of; see `open_pool`.
    backend : {"auto", "onnx", "torch", "tensorrt"}
        As of `choose`.
    threads : int
        CPU threads.
    seed : int
        Of the session: fixes, with the trial, the noise that a picture starts from.
    prior_steps, unclip_steps : int or None
        Evaluations a picture; None takes what the pack was made for.

    Raises
    ------
    EngineError, BundleError
        The pack, the stimuli or the pool cannot be used.
    """
    chosen = choose(backend, pack)
    pictures = None if pool is None else open_pool(pool, pack)
    if _kind(pack) == KIND:
        candidates = read_stimuli(pack, stimuli)
        recipe = recipe_of(pack.config)
        recipe = replace(
            recipe,
            prior_steps=recipe.prior_steps if prior_steps is None else prior_steps,
            unclip_steps=recipe.unclip_steps if unclip_steps is None else unclip_steps,
        )
        mind = load_mindeye2(pack, backend=chosen, recipe=recipe, threads=threads)
        return Decoder(pack, candidates, MindEye2Generator(mind, seed=seed), pictures)
    stages = load_stages(pack, threads=threads)
    generator = TinyGenerator(stages, seed=seed, prior_steps=prior_steps, unclip_steps=unclip_steps)
    return Decoder(pack, embed_candidates(stages, stimuli), generator, pictures)


def load_candidates(pack: EnginePack, stimuli: Path | None, *, threads: int = 1) -> Candidates:
    """Load what a trial may have shown, without the networks that decode.

    Parameters
    ----------
    pack : EnginePack
    stimuli : Path or None
        Folder of pictures. For a tiny pack, None stands for its categories; for a MindEye2 pack it also holds what
        `read_stimuli` wants.
    threads : int
        CPU threads.

    Raises
    ------
    EngineError, BundleError
        The pack or the stimuli cannot be used.
    """
    if _kind(pack) == KIND:
        return read_stimuli(pack, stimuli)
    return embed_candidates(load_stages(pack, threads=threads), stimuli)


def _kind(pack: EnginePack) -> str:
    kind = str(pack.config.get("kind", "tiny"))
    if kind not in ("tiny", KIND):
        raise EngineError(f"pack {pack.name}: expected a pack of kind tiny or {KIND} for a session, got {kind}")
    return kind
