"""A MindEye2 decoder's stages, put together from parts, whatever runs these: ONNX Runtime, TensorRT or torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from rtdecode.bundle import EnginePack
from rtdecode.decode.engines import OnnxEngine
from rtdecode.decode.mindeye2.stages import Float32, Hidden, Stages
from rtdecode.decode.mindeye2.unclip import UNCLIP_SIZES, Compute, Unclip, size_features
from rtdecode.decode.plans import exported, load_plan, plan_keys
from rtdecode.decode.sampling.edm import guide
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError

NEEDED = ("ridge", "backbone", "prior")
LONGEST = 20
"""Words of a caption, the first included."""
WHOLE = {"t": (1, 90), "words": (1, 90), "place": (0, LONGEST), "keep": (0, 2)}
"""Inputs of parts that are whole numbers, and from where up to where examples of them lie."""
_CONTEXT = "unclip_context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """What computes parts, and the arrays that it works on.

    Attributes
    ----------
    parts : collection of str
        Names of the parts there are.
    open : callable
        Name of a part to what computes it: named arrays in, named arrays out.
    join : callable
        Puts arrays behind each other along the first axis.
    level : callable
        A whole number as an array with one value for each row of another.
    array, host : callable
        A numpy array to an array of the runner, and back.
    """

    parts: Collection[str]
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

    Raises
    ------
    EngineError
        The pack has no exported parts.
    """
    parts = exported(pack)
    return Runner(
        parts=parts,
        open=lambda name: (
            OnnxEngine(pack.folder / parts[name]["file"], name=f"{pack.name}/{name}", threads=threads).run
        ),
        join=np.concatenate,
        level=lambda number, rows: np.full(len(rows), number, np.int64),
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
    return tensor_runner(keys, lambda name: load_plan(pack, name, keys[name], runtime).compute, device=runtime.device)


def tensor_runner(parts: Collection[str], open_part: Callable[[str], Compute], *, device: str) -> Runner:
    """Run parts that take and give torch tensors on a device.

    Parameters
    ----------
    parts : collection of str
    open_part : callable
        As `Runner.open`; its answers may be of any precision.
    device : str
        As torch names it.
    """
    import torch

    def open_float(name: str) -> Compute:
        compute = open_part(name)
        if name == _CONTEXT:  # its answers go into another part only, and stay as they are
            return compute
        return lambda values: {key: value.float() for key, value in compute(values).items()}

    return Runner(
        parts=parts,
        open=open_float,
        join=torch.cat,
        level=lambda number, rows: torch.full((len(rows),), number, device=device, dtype=torch.int64),
        array=lambda values: torch.from_numpy(values).to(device),
        host=lambda values: np.asarray(values.float().cpu().numpy()),
    )


def load_engines(pack: EnginePack, runner: Runner, *, participant: int = 0) -> Stages:
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
    parts, stages = runner.parts, pack.config["stages"]
    if missing := [name for name in NEEDED if name not in parts]:
        raise EngineError(f"pack {pack.name}: missing stages {', '.join(missing)}; import the weights again")

    def simple(name: str) -> Callable[[Any], Any] | None:
        if name not in parts:
            return None
        decode = runner.open(name)
        return lambda latent: decode({"latent": latent})["picture"]

    return Stages(
        ridge=ridge_layer(pack, participant),
        schedule=cosine_schedule(int(stages["prior"]["sizes"].get("timesteps", 100))),
        backbone=_backbone(runner.open("backbone")),
        prior=guided_prior(runner),
        caption=_captions(pack, runner) if {"converter", "captioner"} <= set(parts) else None,
        unclip=_unclip(runner) if {"unclip", _CONTEXT} <= set(parts) else None,
        latent_side=int(stages["unclip"]["sizes"]["sample_size"]) if "unclip" in stages else 0,
        picture=simple("autoencoder"),
        small_picture=simple("small_autoencoder"),
        blurry=simple("blurry_autoencoder") if stages["backbone"]["sizes"]["low_level"] else None,
        embed=None,
        refiner=None,
        array=runner.array,
        host=runner.host,
    )


def ridge_layer(pack: EnginePack, participant: int) -> tuple[Float32, Float32]:
    """Read one ridge layer of a pack: weights (hidden, voxels) and bias (hidden,).

    Raises
    ------
    EngineError
        The pack has no such layer, or it is in bfloat16 and there is no torch to read it.
    """
    path = pack.folder / pack.config["stages"]["ridge"]["file"]
    weight, bias = (f"linears.{participant}.{part}" for part in ("weight", "bias"))
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        if weight not in names:
            raise EngineError(
                f"pack {pack.name}: expected a participant from 0 to {len(names) // 2 - 1}, got {participant}"
            )
        if file.get_slice(weight).get_dtype() != "BF16":
            return file.get_tensor(weight).astype(np.float32), file.get_tensor(bias).astype(np.float32)
    if importlib.util.find_spec("torch") is None:
        raise EngineError(
            f"pack {pack.name}: expected a ridge in float16 or float32, got bfloat16: rtdecode engines export "
            f"{pack.folder}, or pip install '.[gpu]'"
        )
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(weight).float().numpy(), file.get_tensor(bias).float().numpy()


def _backbone(compute: Compute) -> Callable[[Any], Hidden]:
    def run(hidden: Any) -> Hidden:
        found = compute({"hidden": hidden[:, None]})
        return Hidden(tokens=found["tokens"], retrieval=found["retrieval"], latent=found.get("latent"))

    return run


def guided_prior(runner: Runner) -> Callable[[Any, int, Any, float], Any]:
    """Open the prior: noisy tokens, noise level, condition and guidance to clean tokens."""
    compute = runner.open("prior")

    def run(x: Any, t: int, condition: Any, guidance: float) -> Any:
        if guidance == 1:
            keep = runner.level(1, x)
            return compute({"x": x, "t": runner.level(t, x), "condition": condition, "keep": keep})["tokens"]
        both = runner.join([x, x])
        keep = runner.join([runner.level(1, x), runner.level(0, x)])
        given = {"x": both, "t": runner.level(t, both), "condition": runner.join([condition] * 2), "keep": keep}
        tokens = compute(given)["tokens"]
        return guide(tokens[: len(x)], tokens[len(x) :], guidance)

    return run


def _unclip(runner: Runner) -> Unclip:
    return Unclip(
        context_part=runner.open(_CONTEXT),
        step_part=runner.open("unclip"),
        vector=runner.array(size_features(UNCLIP_SIZES)),
        join=runner.join,
        level=runner.level,
    )


def _captions(pack: EnginePack, runner: Runner) -> Callable[[Any], list[str]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError(f"captions need tokenizers: pip install '.[gpu]' ({error})") from None
    convert, score = runner.open("converter"), runner.open("captioner")
    sizes = pack.config["stages"]["captioner"]["sizes"]
    first, last = int(sizes["bos_token_id"]), int(sizes["eos_token_id"])
    tokenizer = Tokenizer.from_file(str(pack.folder / "captioner" / "tokenizer.json"))

    def run(tokens: Any) -> list[str]:
        features = convert({"tokens": tokens})["features"]
        words = np.full((len(tokens), LONGEST), last, np.int64)
        words[:, 0] = first
        for place in range(LONGEST - 1):
            given = {"features": features, "words": runner.array(words), "place": runner.level(place, words)}
            words[:, place + 1] = runner.host(score(given)["scores"]).argmax(1)
            if (words[:, 1 : place + 2] == last).any(1).all():
                break
        return [tokenizer.decode(_said(row.tolist(), last)).strip() for row in words]

    return run


def _said(words: list[int], last: int) -> list[int]:
    """Words between the first, which begins every caption, and the one that ends it."""
    return words[1 : words.index(last)] if last in words else words[1:]
