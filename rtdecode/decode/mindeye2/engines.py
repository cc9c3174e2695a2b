"""A MindEye2 pack that was exported: its parts run by ONNX Runtime, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.bundle import EnginePack
from rtdecode.decode.engines import Engine, OnnxEngine
from rtdecode.decode.mindeye2.stages import Float32, Hidden, Stages
from rtdecode.decode.mindeye2.unclip import Unclip
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError

CONDITIONING = "conditioning.safetensors"
NEEDED = ("ridge", "backbone", "prior")
LONGEST = 20
"""Words of a caption, the first included."""


def load_engines(pack: EnginePack, *, participant: int = 0, threads: int = 1) -> Stages:
    """Load the exported parts of a MindEye2 pack; stages that it lacks are None, and so is the refinement.

    Parameters
    ----------
    pack : EnginePack
        From ``rtdecode engines export``.
    participant : int
        Which ridge layer of the pack starts; `MindEye2.take_ridge` gives another.
    threads : int
        CPU threads within one operation.

    Raises
    ------
    EngineError
        A part that every picture needs is missing, or one cannot be loaded.
    """
    parts = pack.config.get("parts", {})
    if missing := [name for name in NEEDED if name not in parts]:
        raise EngineError(
            f"pack {pack.name}: expected the parts {', '.join(NEEDED)}; missing {', '.join(missing)}: "
            f"rtdecode engines export {pack.folder}"
        )
    stages = pack.config["stages"]

    def engine(name: str) -> Engine:
        return OnnxEngine(pack.folder / parts[name]["file"], name=f"{pack.name}/{name}", threads=threads)

    def simple(name: str, given: str, found: str) -> Callable[[Float32], Float32] | None:
        if name not in parts:
            return None
        one = engine(name)
        return lambda values: np.asarray(one.run({given: values})[found])

    weights = pack.tensors(stages["ridge"]["file"])
    if f"linears.{participant}.weight" not in weights:
        raise EngineError(
            f"pack {pack.name}: expected a participant from 0 to {len(weights) // 2 - 1}, got {participant}"
        )
    return Stages(
        ridge=(
            weights[f"linears.{participant}.weight"].astype(np.float32),
            weights[f"linears.{participant}.bias"].astype(np.float32),
        ),
        schedule=cosine_schedule(int(stages["prior"]["sizes"].get("timesteps", 100))),
        backbone=_backbone(engine("backbone")),
        prior=_prior(engine("prior")),
        caption=_captions(pack, engine) if {"converter", "captioner"} <= parts.keys() else None,
        unclip=_unclip(pack, engine) if {"unclip", "unclip_context"} <= parts.keys() else None,
        latent_side=int(stages["unclip"]["sizes"]["sample_size"]) if "unclip" in stages else 0,
        picture=simple("autoencoder", "latent", "picture"),
        blurry=simple("blurry_autoencoder", "latent", "picture"),
        embed=None,  # pictures of other sizes are resized as bigG wants it by torch only
        refiner=None,
        array=lambda values: values,
        host=lambda values: values,
    )


def _backbone(engine: Engine) -> Callable[[Float32], Hidden]:
    def run(hidden: Float32) -> Hidden:
        found = engine.run({"hidden": hidden[:, None]})
        return Hidden(tokens=found["tokens"], retrieval=found["retrieval"], latent=found.get("latent"))

    return run


def _prior(engine: Engine) -> Callable[[Float32, int, Float32, float], Float32]:
    def run(x: Float32, t: int, condition: Float32, guidance: float) -> Float32:
        if guidance != 1:
            raise EngineError(
                f"{engine.name}: expected a prior_guidance of 1, got {guidance}: the torch backend has it"
            )
        return np.asarray(engine.run({"x": x, "t": _level(t, x), "condition": condition})["tokens"])

    return run


def _level(t: int, rows: NDArray[Any]) -> NDArray[np.int64]:
    return np.full(len(rows), t, np.int64)


def _unclip(pack: EnginePack, engine: Callable[[str], Engine]) -> Unclip:
    return Unclip(
        context_part=engine("unclip_context").run,
        step_part=engine("unclip").run,
        vector=pack.tensors(CONDITIONING)["unclip"].astype(np.float32),
        join=np.concatenate,
        level=_level,
    )


def _captions(pack: EnginePack, engine: Callable[[str], Engine]) -> Callable[[Float32], list[str]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError(f"captions need tokenizers: pip install 'rtdecode[gpu]' ({error})") from None
    converter, captioner = engine("converter"), engine("captioner")
    sizes = pack.config["stages"]["captioner"]["sizes"]
    first, last = int(sizes["bos_token_id"]), int(sizes["eos_token_id"])
    tokenizer = Tokenizer.from_file(str(pack.folder / "captioner" / "tokenizer.json"))

    def run(tokens: Float32) -> list[str]:
        features = converter.run({"tokens": tokens})["features"]
        words = np.full((len(tokens), 1), first, np.int64)
        while words.shape[1] < LONGEST and not (words == last).any(1).all():
            scores = captioner.run({"features": features, "words": words})["scores"]
            words = np.concatenate([words, scores.argmax(1)[:, None]], 1)
        return [tokenizer.decode(_said(row.tolist(), last)).strip() for row in words]

    return run


def _said(words: list[int], last: int) -> list[int]:
    """Words between the first, which begins every caption, and the one that ends it."""
    return words[1 : words.index(last)] if last in words else words[1:]
