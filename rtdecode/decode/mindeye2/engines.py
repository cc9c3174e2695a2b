"""A MindEye2 pack that was exported: its parts run by ONNX Runtime without torch, or as TensorRT plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from rtdecode.bundle import EnginePack
from rtdecode.decode.engines import OnnxEngine
from rtdecode.decode.mindeye2.stages import Float32, Hidden, Stages
from rtdecode.decode.mindeye2.unclip import Compute, Unclip
from rtdecode.decode.plans import load_plan, plan_keys
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError

CONDITIONING = "conditioning.safetensors"
NEEDED = ("ridge", "backbone", "prior")
LONGEST = 20
"""Words of a caption, the first included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runner:
    """What computes parts, and the arrays that it works on.

    Attributes
    ----------
    open : callable
        Name of a part to what computes it: named arrays in, named arrays out.
    join : callable
        Puts arrays behind each other along the first axis.
    level : callable
        A timestep as an array with one value for each row of another.
    array, host : callable
        A numpy array to an array of the runner, and back.
    """

    open: Callable[[str], Compute]
    join: Callable[[Sequence[Any]], Any]
    level: Callable[[int, Any], Any]
    array: Callable[[NDArray[Any]], Any]
    host: Callable[[Any], NDArray[Any]]


def onnx_runner(pack: EnginePack, *, threads: int = 1) -> Runner:
    """Run the exported parts of a pack by ONNX Runtime on the CPU, without torch.

    Parameters
    ----------
    pack : EnginePack
        From ``rtdecode engines export``.
    threads : int
        CPU threads within one operation.
    """
    parts = pack.config.get("parts", {})
    return Runner(
        open=lambda name: (
            OnnxEngine(pack.folder / parts[name]["file"], name=f"{pack.name}/{name}", threads=threads).run
        ),
        join=np.concatenate,
        level=lambda t, rows: np.full(len(rows), t, np.int64),
        array=lambda values: values,
        host=lambda values: np.asarray(values),
    )


def tensorrt_runner(pack: EnginePack) -> Runner:
    """Run the compiled plans of a pack; arrays stay on the GPU between parts.

    Parameters
    ----------
    pack : EnginePack
        With plans of ``rtdecode engines build``.

    Raises
    ------
    EngineError
        TensorRT, torch or a GPU is missing.
    """
    from rtdecode.decode.tensorrt import TensorRT  # its requirements are told in its own words

    runtime = TensorRT()
    keys = plan_keys(pack, runtime.hardware())
    import torch

    device = runtime.device

    def compute(name: str) -> Compute:
        engine = load_plan(pack, name, keys[name], runtime)
        return lambda values: {key: value.float() for key, value in engine.compute(values).items()}

    return Runner(
        open=compute,
        join=torch.cat,
        level=lambda t, rows: torch.full((len(rows),), t, device=device, dtype=torch.int64),
        array=lambda values: torch.from_numpy(values).to(device),
        host=lambda values: np.asarray(values.float().cpu().numpy()),
    )


def load_engines(pack: EnginePack, runner: Runner, *, participant: int = 0) -> Stages:
    """Put the exported parts of a MindEye2 pack together; stages that it lacks are None, and so is the refinement.

    Parameters
    ----------
    pack : EnginePack
        From ``rtdecode engines export``.
    runner : Runner
    participant : int
        Which ridge layer of the pack starts; `MindEye2.take_ridge` gives another.

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

    def simple(name: str) -> Callable[[Any], Any] | None:
        if name not in parts:
            return None
        decode = runner.open(name)
        return lambda latent: decode({"latent": latent})["picture"]

    return Stages(
        ridge=ridge_layer(pack, participant),
        schedule=cosine_schedule(int(stages["prior"]["sizes"].get("timesteps", 100))),
        backbone=_backbone(runner.open("backbone")),
        prior=_prior(pack.name, runner),
        caption=_captions(pack, runner) if {"converter", "captioner"} <= parts.keys() else None,
        unclip=_unclip(pack, runner) if {"unclip", "unclip_context"} <= parts.keys() else None,
        latent_side=int(stages["unclip"]["sizes"]["sample_size"]) if "unclip" in stages else 0,
        picture=simple("autoencoder"),
        blurry=simple("blurry_autoencoder"),
        embed=None,  # pictures of other sizes are resized as bigG wants it by torch only
        refiner=None,
        array=runner.array,
        host=runner.host,
    )


def ridge_layer(pack: EnginePack, participant: int) -> tuple[Float32, Float32]:
    """Read one ridge layer of a pack: weights (hidden, voxels) and bias (hidden,).

    Raises
    ------
    EngineError
        The pack has no such layer, or numpy cannot read it.
    """
    with safe_open(pack.folder / pack.config["stages"]["ridge"]["file"], framework="numpy") as file:
        names = file.keys()
        weight, bias = (f"linears.{participant}.{part}" for part in ("weight", "bias"))
        if weight not in names:
            raise EngineError(
                f"pack {pack.name}: expected a participant from 0 to {len(names) // 2 - 1}, got {participant}"
            )
        if (dtype := file.get_slice(weight).get_dtype()) not in ("F16", "F32"):
            raise EngineError(
                f"pack {pack.name}: expected a ridge in float16 or float32, got {dtype}: "
                f"rtdecode engines export {pack.folder}"
            )
        return file.get_tensor(weight).astype(np.float32), file.get_tensor(bias).astype(np.float32)


def _backbone(compute: Compute) -> Callable[[Any], Hidden]:
    def run(hidden: Any) -> Hidden:
        found = compute({"hidden": hidden[:, None]})
        return Hidden(tokens=found["tokens"], retrieval=found["retrieval"], latent=found.get("latent"))

    return run


def _prior(name: str, runner: Runner) -> Callable[[Any, int, Any, float], Any]:
    compute = runner.open("prior")

    def run(x: Any, t: int, condition: Any, guidance: float) -> Any:
        if guidance != 1:
            raise EngineError(f"{name}/prior: expected a prior_guidance of 1, got {guidance}; torch can do it")
        return compute({"x": x, "t": runner.level(t, x), "condition": condition})["tokens"]

    return run


def _unclip(pack: EnginePack, runner: Runner) -> Unclip:
    return Unclip(
        context_part=runner.open("unclip_context"),
        step_part=runner.open("unclip"),
        vector=runner.array(pack.tensors(CONDITIONING)["unclip"].astype(np.float32)),
        join=runner.join,
        level=runner.level,
    )


def _captions(pack: EnginePack, runner: Runner) -> Callable[[Any], list[str]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError(f"captions need tokenizers: pip install 'rtdecode[gpu]' ({error})") from None
    convert, score = runner.open("converter"), runner.open("captioner")
    sizes = pack.config["stages"]["captioner"]["sizes"]
    first, last = int(sizes["bos_token_id"]), int(sizes["eos_token_id"])
    tokenizer = Tokenizer.from_file(str(pack.folder / "captioner" / "tokenizer.json"))

    def run(tokens: Any) -> list[str]:
        features = convert({"tokens": tokens})["features"]
        words = np.full((len(tokens), 1), first, np.int64)
        while words.shape[1] < LONGEST and not (words == last).any(1).all():
            scores = runner.host(score({"features": features, "words": runner.array(words)})["scores"])
            words = np.concatenate([words, scores.argmax(1)[:, None]], 1)
        return [tokenizer.decode(_said(row.tolist(), last)).strip() for row in words]

    return run


def _said(words: list[int], last: int) -> list[int]:
    """Words between the first, which begins every caption, and the one that ends it."""
    return words[1 : words.index(last)] if last in words else words[1:]
