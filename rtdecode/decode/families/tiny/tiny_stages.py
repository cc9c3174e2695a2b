"""The engines of a pack, checked against what its `pack.toml` promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.tiny_description import SamplingTable, TinyDescription
from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

STAGES = ("embedder", "adapter", "commit", "prior", "unclip_context", "unclip", "autoencoder", "captioner")


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
    group_names : tuple of str
        Of each of these.
    picture_px : tuple of int
        Height and width.
    sampling : SamplingTable
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
    group_names: tuple[str, ...]
    picture_px: tuple[int, int]
    sampling: SamplingTable


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
    said = pack.described(TinyDescription)
    engines = {name: open_stage(pack, name, threads=threads) for name in STAGES}
    prototypes = pack.tensors(said.prototypes)["prototypes"].astype(np.float32)
    layout = (len(said.categories), said.tokens.count, said.tokens.channels)
    if prototypes.shape != layout:
        raise EngineError(f"pack {pack.name}: expected prototypes of shape {layout}, got {prototypes.shape}")
    return TinyStages(
        **engines,
        prototypes=prototypes,
        categories=tuple(said.categories),
        vocabulary=tuple(said.caption.vocabulary),
        end=said.caption.end,
        groups=tuple(slice(first, stop) for first, stop in said.tokens.groups.values()),
        group_names=tuple(said.tokens.groups),
        picture_px=(said.picture.height, said.picture.width),
        sampling=said.sampling,
    )


def open_stage(pack: EnginePack, name: str, *, threads: int) -> Engine:
    """Load one stage.

    Raises
    ------
    EngineError
        It is missing, cannot be loaded, or has other inputs or outputs than ``pack.toml`` says.
    """
    stage = pack.description.stage(name)
    engine = OnnxEngine(pack.folder / stage.file, name=f"{pack.name}/{name}", threads=threads)
    for kind, said, got in (("inputs", stage.inputs, engine.inputs), ("outputs", stage.outputs, engine.outputs)):
        if set(got) != set(said):
            raise EngineError(f"{engine.name}: pack.toml gives {kind} {sorted(said)}, the engine has {sorted(got)}")
    return engine
