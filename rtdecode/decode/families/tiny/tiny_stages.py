"""The engines of a pack, checked against what its `pack.toml` promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.bundle import EnginePack
from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.errors import EngineError

STAGES = ("embedder", "adapter", "commit", "prior", "unclip_context", "unclip", "autoencoder", "captioner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a pack's diffusion networks are called.

    Attributes
    ----------
    prior_levels : int
        Noise levels of the prior's cosine schedule.
    prior_steps, unclip_steps : int
        Evaluations a picture.
    latent : tuple of int
        Channels, height and width of a latent.
    temperature : float
        Deviation of the noise that latents start from, in units of what the schedule asks.
    """

    prior_levels: int
    prior_steps: int
    unclip_steps: int
    latent: tuple[int, int, int]
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TinyStages:
    """What a decoder needs of a pack.

    Attributes
    ----------
    embedder : Engine
        Pictures ``image`` (b, 3, h, w) in 0..1 to ``tokens`` (b, t, d).
    adapter : Engine
        ``beta`` (b, s) and the participant's weights to ``components`` (b, k) and ``tokens``.
    commit : Engine
        Noisy ``tokens``, their ``r2`` (b, groups) and ``category_bias`` (b, c) to ``tokens_clean``, which say one
        definite thing, and ``category`` probabilities.
    prior : Engine
        One evaluation of the diffusion prior: ``noisy`` (b, t, d) at level ``t`` (b,), given ``tokens``, to ``clean``
        in the diffusion's own units and ``tokens_clean``.
    unclip_context : Engine
        ``tokens`` to what the unCLIP is given at every step: ``context`` (b, t, k), keys and values of its
        cross-attention, a ``draft`` picture and its latent ``draft_latent``.
    unclip : Engine
        One step: ``latent`` at level ``t`` (b,), ``draft_latent`` and ``context`` to the ``noise`` in it.
    autoencoder : Engine
        ``latent`` and ``draft`` to ``image``.
    captioner : Engine
        ``tokens`` to ``words`` (b, l) and their ``probability``.
    prototypes : ndarray of shape (c, t, d), float32
        Mean tokens of each category.
    categories : tuple of str
    vocabulary : tuple of str
    end : int
        Number of the word that ends a caption.
    groups : tuple of slice
        Token groups, as slices of the flattened tokens.
    picture_px : tuple of int
        Height and width.
    sampling : Sampling
    """

    embedder: Engine
    adapter: Engine
    commit: Engine
    prior: Engine
    unclip_context: Engine
    unclip: Engine
    autoencoder: Engine
    captioner: Engine
    prototypes: NDArray[np.float32]
    categories: tuple[str, ...]
    vocabulary: tuple[str, ...]
    end: int
    groups: tuple[slice, ...]
    picture_px: tuple[int, int]
    sampling: Sampling


def load_stages(pack: EnginePack, *, threads: int = 1) -> TinyStages:
    """Load the engines of a pack.

    Parameters
    ----------
    pack : EnginePack
    threads : int
        Threads within one operation.

    Raises
    ------
    EngineError
        A stage is missing, cannot be loaded, or has other inputs or outputs than `pack` says.
    """
    config = pack.config
    missing = [name for name in STAGES if name not in config["stages"]]
    if missing:
        raise EngineError(f"pack {pack.name}: expected stages {', '.join(STAGES)}; missing {', '.join(missing)}")
    engines = {name: open_stage(pack, name, threads=threads) for name in STAGES}
    prototypes = pack.tensors(config["prototypes"])["prototypes"].astype(np.float32)
    layout = (len(config["categories"]), config["tokens"]["count"], config["tokens"]["channels"])
    if prototypes.shape != layout:
        raise EngineError(f"pack {pack.name}: expected prototypes of shape {layout}, got {prototypes.shape}")
    return TinyStages(
        **engines,
        prototypes=prototypes,
        categories=tuple(config["categories"]),
        vocabulary=tuple(config["caption"]["vocabulary"]),
        end=int(config["caption"]["end"]),
        groups=tuple(slice(first, stop) for first, stop in config["tokens"]["groups"].values()),
        picture_px=(int(config["picture"]["height"]), int(config["picture"]["width"])),
        sampling=_sampling(pack),
    )


def _sampling(pack: EnginePack) -> Sampling:
    try:
        prior, unclip = pack.config["sampling"]["prior"], pack.config["sampling"]["unclip"]
        channels, height, width = (int(n) for n in unclip["latent"])
        return Sampling(
            prior_levels=int(prior["levels"]),
            prior_steps=int(prior["steps"]),
            unclip_steps=int(unclip["steps"]),
            latent=(channels, height, width),
            temperature=float(unclip["temperature"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"pack {pack.name}: sampling: expected levels and steps of prior and unclip, the unclip's temperature and "
            f"its latent of 3 sizes, got {pack.config.get('sampling')} ({error!r})"
        ) from None


def open_stage(pack: EnginePack, name: str, *, threads: int) -> Engine:
    """Load one stage.

    Raises
    ------
    EngineError
        It is missing, cannot be loaded, or has other inputs or outputs than ``pack.toml`` says.
    """
    spec = pack.config["stages"].get(name)
    if spec is None:
        raise EngineError(f"pack {pack.name}: expected a stage {name}, got none")
    engine = OnnxEngine(pack.folder / spec["file"], name=f"{pack.name}/{name}", threads=threads)
    for kind, got in (("inputs", engine.inputs), ("outputs", engine.outputs)):
        if set(got) != set(spec[kind]):
            raise EngineError(
                f"{engine.name}: pack.toml gives {kind} {sorted(spec[kind])}, the engine has {sorted(got)}"
            )
    return engine
