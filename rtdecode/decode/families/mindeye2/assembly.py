"""A MindEye2 decoder's stages, put together from parts, whatever runs these: ONNX Runtime, TensorRT or torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rtdecode.decode.families.git_captions import CAPTION_CONTEXT, git_captions
from rtdecode.decode.families.guided_prior import guided_prior
from rtdecode.decode.families.linear_layer import linear_layer
from rtdecode.decode.families.mindeye2.mindeye2_stages import Float32, Hidden, MindEye2Stages
from rtdecode.decode.families.mindeye2.unclip_step import UNCLIP_SIZES, Unclip, size_features
from rtdecode.decode.runtime.runner import Compute, Runner
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

NEEDED = ("ridge", "backbone", "prior")
CONTEXT = "unclip_context"
INTERNAL = (CONTEXT, CAPTION_CONTEXT)
"""Parts of unCLIP and captioner whose answers go into their other parts only."""


def load_engines(pack: EnginePack, runner: Runner, *, participant: int = 0) -> MindEye2Stages:
    """Put the parts of a MindEye2 pack together; stages that it lacks are None, and so are embedder and refinement.

    Parameters
    ----------
    pack : EnginePack
    runner : Runner
    participant : int
        Which ridge layer of the pack starts; `MindEye2.take_ridge` gives another.

    Raises
    ------
    EngineError
        A part that every picture needs is missing, or one cannot be loaded.
    """
    parts, said = runner.parts, pack.description
    if missing := [name for name in NEEDED if name not in parts]:
        raise EngineError(f"pack {pack.name}: missing stages {', '.join(missing)}; import the weights again")

    def simple(name: str) -> Callable[[Any], Any] | None:
        if name not in parts:
            return None
        decode = runner.open(name)
        return lambda latent: decode({"latent": latent})["picture"]

    return MindEye2Stages(
        ridge=ridge_layer(pack, participant),
        schedule=cosine_schedule(said.size("prior", "timesteps", 100)),
        backbone=_backbone(runner.open("backbone")),
        prior=guided_prior(runner),
        caption=_captions(pack, runner) if {"converter", "captioner"} <= set(parts) else None,
        unclip=_unclip(runner) if {"unclip", CONTEXT} <= set(parts) else None,
        latent_side=said.size("unclip", "sample_size") if "unclip" in said.stages else 0,
        picture=simple("autoencoder"),
        small_picture=simple("small_autoencoder"),
        blurry=simple("blurry_autoencoder") if said.size("backbone", "low_level") else None,
        embed=None,
        refiner=None,
        array=runner.array,
        host=runner.host,
        normal=runner.normal,
        image=runner.image,
        fallbacks=runner.fallbacks,
        whole=runner.whole,
    )


def load_network(network: EnginePack, runner: Runner, stages: MindEye2Stages, *, alike: bool) -> MindEye2Stages:
    """Put backbone and prior of a participant's own network in the place of a pack's.

    Parameters
    ----------
    network : EnginePack
        Of ``rtdecode engines finetune``.
    runner : Runner
        What computes it.
    stages : MindEye2Stages
        Of the pack.
    alike : bool
        Whether the pack's stages work on the same arrays as the runner; else arrays pass through the host.

    Raises
    ------
    EngineError
        A part is missing, cannot be loaded, or is of other sizes.
    """
    said = network.description
    if missing := [name for name in NEEDED[1:] if name not in runner.parts]:
        raise EngineError(f"network {network.name}: missing stages {', '.join(missing)}; fine-tune again")
    hidden, wanted = said.size("backbone", "hidden"), stages.ridge[0].shape[0]
    if hidden != wanted:
        raise EngineError(f"network {network.name}: takes {hidden} hidden values, the pack's {wanted}")
    backbone, prior = _backbone(runner.open("backbone")), guided_prior(runner)
    if alike:
        return replace(stages, backbone=backbone, prior=prior)

    def taken(values: Any) -> Any:
        return runner.array(np.ascontiguousarray(stages.host(values)))

    def given(values: Any) -> Any:
        return None if values is None else stages.array(np.ascontiguousarray(runner.host(values)))

    def through_backbone(values: Any) -> Hidden:
        found = backbone(taken(values))
        return Hidden(tokens=given(found.tokens), retrieval=given(found.retrieval), latent=given(found.latent))

    def through_prior(x: Any, t: int, condition: Any, guidance: float) -> Any:
        return given(prior(taken(x), t, taken(condition), guidance))

    return replace(stages, backbone=through_backbone, prior=through_prior, whole=lambda _, function: function)


def ridge_layer(pack: EnginePack, participant: int) -> tuple[Float32, Float32]:
    """Read one ridge layer of a pack: weights (hidden, voxels) and bias (hidden,).

    Raises
    ------
    EngineError
        The pack has no such layer, or it is in bfloat16 and there is no torch to read it.
    """
    try:
        return linear_layer(pack, "ridge", f"linears.{participant}")
    except KeyError:
        people = len(pack.description.stage("ridge").sizes["voxels"])
        raise EngineError(
            f"pack {pack.name}: expected a participant from 0 to {people - 1}, got {participant}"
        ) from None


def _backbone(compute: Compute) -> Callable[[Any], Hidden]:
    def run(hidden: Any) -> Hidden:
        found = compute({"hidden": hidden[:, None]})
        return Hidden(tokens=found["tokens"], retrieval=found["retrieval"], latent=found.get("latent"))

    return run


def _unclip(runner: Runner) -> Unclip:
    return Unclip(
        context_part=runner.open(CONTEXT),
        step_part=runner.open("unclip"),
        vector=runner.array(size_features(UNCLIP_SIZES)),
        join=runner.join,
        level=runner.level,
    )


def _captions(pack: EnginePack, runner: Runner) -> Callable[[Any], list[str]]:
    convert, caption = runner.open("converter"), git_captions(pack, runner)
    return lambda tokens: caption(convert({"tokens": tokens})["features"])
