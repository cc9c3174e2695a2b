"""What computes the parts of a pack: ONNX Runtime, TensorRT or torch, each with arrays of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.runtime.engine import OnnxEngine
from rtdecode.decode.runtime.plans import load_plan, plan_keys, runnable
from rtdecode.decode.sampling.noise import normal
from rtdecode.packs import EnginePack

Compute = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Named arrays in, named arrays out."""
LONGEST = 20
"""Words of a caption, the first included."""
WHOLE = {"t": (1, 90), "level": (1 << 28, 1 << 32), "word": (1, 90), "place": (0, LONGEST), "keep": (0, 2)}
"""Inputs of parts that are whole numbers, and from where up to where examples of them lie."""


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
    most : callable
        Place of the largest value of each row, as an array of the runner.
    at_host : bool
        Whether it costs nothing to look at an array.
    normal : callable
        Key and shape to standard normal noise; see `rtdecode.decode.sampling.noise`.
    image : callable
        A picture (1, 3, h, w) in an autoencoder's units, and what it is multiplied with and shifted by to lie in 0..1,
        to its bytes (h, w, 3) on the host.
    fallbacks : callable
        What runs otherwise than it was to, and why, in words.
    whole : callable
        A name and a function of arrays to an array, which may call parts, to the same function, run at once where the
        device can. Its other numbers are those of the first call.
    """

    parts: Collection[str]
    open: Callable[[str], Compute]
    join: Callable[[Sequence[Any]], Any]
    level: Callable[[int, Any], Any]
    array: Callable[[NDArray[Any]], Any]
    host: Callable[[Any], NDArray[Any]]
    most: Callable[[Any], Any]
    at_host: bool
    normal: Callable[[tuple[int, int], Sequence[int]], Any]
    image: Callable[[Any, float, float], NDArray[np.uint8]]
    fallbacks: Callable[[], tuple[str, ...]] = tuple
    whole: Callable[[str, Callable[..., Any]], Callable[..., Any]] = lambda _, function: function


def compiled_runner(
    pack: EnginePack, backend: Literal["onnx", "tensorrt"], *, threads: int, internal: Collection[str] = ()
) -> Runner:
    """Run what was compiled of a pack; see `onnx_runner` and `tensorrt_runner`."""
    if backend == "onnx":
        return onnx_runner(pack, threads=threads)
    return tensorrt_runner(pack, internal=internal)


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
        As of `runnable`.
    """
    parts = runnable(pack)
    return Runner(
        parts=parts,
        open=lambda name: OnnxEngine(pack.folder / parts[name].file, name=f"{pack.name}/{name}", threads=threads).run,
        join=np.concatenate,
        level=lambda number, rows: np.full(len(rows), number, np.int64),
        array=lambda values: values,
        host=lambda values: np.asarray(values),
        most=lambda values: values.argmax(1),
        at_host=True,
        normal=lambda key, shape: normal(np, key, shape),
        image=_image,
    )


def _image(picture: NDArray[Any], scale: float, shift: float) -> NDArray[np.uint8]:
    scaled = np.rint(np.clip(picture[0] * np.float32(scale) + np.float32(shift), 0, 1) * np.float32(255))
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))


def tensorrt_runner(pack: EnginePack, *, internal: Collection[str] = ()) -> Runner:
    """Run the compiled plans of a pack; arrays stay on the GPU between parts.

    Parameters
    ----------
    pack : EnginePack
        With plans of ``rtdecode engines build``.
    internal : collection of str
        As of `tensor_runner`.

    Raises
    ------
    EngineError
        TensorRT, torch or a GPU is missing.
    """
    from rtdecode.decode.runtime.tensorrt import TensorRT  # its requirements are told in its own words

    runtime = TensorRT()
    keys = plan_keys(pack, runtime.hardware())
    return tensor_runner(
        keys,
        lambda name: load_plan(pack, name, keys[name], runtime).compute,
        device=runtime.device,
        internal=internal,
    )


def tensor_runner(
    parts: Collection[str], open_part: Callable[[str], Compute], *, device: str, internal: Collection[str] = ()
) -> Runner:
    """Run parts that take and give torch tensors on a device.

    Parameters
    ----------
    parts : collection of str
    open_part : callable
        As `Runner.open`; its answers may be of any precision.
    device : str
        As torch names it.
    internal : collection of str
        Parts whose answers go into other parts only, and stay in their own precision; those of all others become
        single precision.
    """
    import torch

    def open_float(name: str) -> Compute:
        compute = open_part(name)
        if name in internal:
            return compute
        return lambda values: {key: value.float() for key, value in compute(values).items()}

    def image(picture: Any, scale: float, shift: float) -> NDArray[np.uint8]:
        scaled = (picture[0].float() * scale + shift).clamp(0, 1).mul(255).round()
        # Bytes on the device: a quarter of what would cross otherwise.
        return np.asarray(scaled.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())

    return Runner(
        parts=parts,
        open=open_float,
        join=torch.cat,
        level=lambda number, rows: torch.full((len(rows),), number, device=device, dtype=torch.int64),
        array=lambda values: torch.from_numpy(values).to(device),
        host=lambda values: np.asarray(values.float().cpu().numpy()),
        most=lambda values: values.argmax(1),
        at_host=device == "cpu",
        normal=lambda key, shape: normal(torch, key, shape, device=device),
        image=image,
    )
