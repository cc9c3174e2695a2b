"""MindEye2 (Scotti et al. 2024): betas to tokens, retrieval, caption and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rtdecode.decode.families.family import Embedder
from rtdecode.decode.families.mindeye2.assembly import INTERNAL, load_engines, load_network
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.mindeye2_pipeline import MindEye2Pipeline
from rtdecode.decode.families.mindeye2.mindeye2_stages import MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import Recipe, recipe_of
from rtdecode.decode.families.mindeye2.stimulus_latents import read_stimuli
from rtdecode.decode.families.network_embedder import network_embedder
from rtdecode.decode.runtime.backends import Backend, choose, import_torch_runtime
from rtdecode.decode.runtime.runner import Runner, compiled_runner
from rtdecode.decode.score.candidates import Candidates
from rtdecode.packs import EnginePack
from rtdecode.settings import DecodeSettings


class MindEye2Family:
    """A `Family` of the published networks."""

    description = MindEye2Description
    counts_steps = True
    guides = True
    finishes = True

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Read what ``rtdecode engines embed`` has written beside the pictures; see `read_stimuli`."""
        return read_stimuli(pack, stimuli)

    def pipeline(self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int) -> MindEye2Pipeline:
        """Load the networks; see `Family.pipeline`."""
        recipe = recipe_of(pack.described(MindEye2Description))
        recipe = replace(
            recipe,
            prior_steps=recipe.prior_steps if settings.prior_steps is None else settings.prior_steps,
            unclip_steps=recipe.unclip_steps if settings.unclip_steps is None else settings.unclip_steps,
            unclip_guidance=recipe.unclip_guidance if settings.unclip_guidance is None else settings.unclip_guidance,
            best_of=settings.best_of,
        )
        mind = load_mindeye2(pack, backend=backend, recipe=recipe, threads=settings.threads)

        def open_network(network: EnginePack, stages: MindEye2Stages) -> MindEye2Stages:
            own = choose(backend.name if backend.name == "torch" else "auto", network)
            return load_network(
                network, _runner(network, own, settings.threads), stages, alike=own.name == backend.name
            )

        return MindEye2Pipeline(mind, open_network, seed=seed, finish=settings.finish)

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load OpenCLIP's bigG tower."""
        return network_embedder(pack, threads=threads)


FAMILY = MindEye2Family()


def _runner(pack: EnginePack, backend: Backend, threads: int) -> Runner:
    if backend.name != "torch":
        return compiled_runner(pack, backend.name, threads=threads, internal=INTERNAL)
    with import_torch_runtime(pack, threads):
        from rtdecode.decode.runtime.torch_runner import torch_runner
    return torch_runner(pack, device=backend.device, precision=backend.precision, internal=INTERNAL)


def load_mindeye2(
    pack: EnginePack,
    *,
    backend: Backend | None = None,
    recipe: Recipe | None = None,
    participant: int = 0,
    threads: int = 1,
) -> MindEye2:
    """Load a MindEye2 pack.

    Parameters
    ----------
    pack : EnginePack
    backend : Backend or None
        None: as `choose` does by itself.
    recipe : Recipe or None
        None: the published one, or that of its students where the pack was distilled.
    participant : int
        Which ridge layer of the pack starts.
    threads : int
        CPU threads.

    Raises
    ------
    EngineError
        The pack lacks what every picture needs, or the backend is not installed.
    BundleError
        A file is not what ``pack.toml`` describes.
    """
    recipe = recipe or recipe_of(pack.described(MindEye2Description))
    backend = backend or choose("auto", pack)
    if backend.name != "torch":
        runner = _runner(pack, backend, threads)
        return MindEye2(load_engines(pack, runner, participant=participant), recipe)
    with import_torch_runtime(pack, threads):
        from rtdecode.decode.families.mindeye2.torch_stages import load_stages
    stages = load_stages(pack, participant=participant, device=backend.device, precision=backend.precision)
    return MindEye2(stages, recipe)
