"""Which library runs the networks of a pack: chosen once, in words, and never changed in a session."""

from __future__ import annotations

import importlib.util
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rtdecode.decode.runtime.plans import runnable, without_kernels
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PartPrecision


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A choice.

    Attributes
    ----------
    name : {"onnx", "torch", "tensorrt"}
    device : str
        As torch names it.
    precision : str
        Of the networks, the coarsest first where they differ.
    reason : str
        Why, in one line.
    """

    name: Literal["onnx", "torch", "tensorrt"]
    device: str
    precision: str
    reason: str


def choose(wanted: str, pack: EnginePack) -> Backend:
    """Choose what runs a pack.

    Parameters
    ----------
    wanted : {"auto", "onnx", "torch", "tensorrt"}
        ``auto``: TensorRT where the pack holds plans and a GPU is found; else ONNX Runtime where it holds ONNX files
        that this runs and no GPU is found; else torch.
    pack : EnginePack

    Raises
    ------
    EngineError
        The pack has nothing that the wanted backend runs, or it is not installed.
    """
    networks = pack.description.has_networks
    files = not networks or (bool(pack.description.parts) and not without_kernels(pack))
    torch = importlib.util.find_spec("torch") is not None
    gpu = networks and torch and _has_gpu()
    plans = any(pack.folder.glob("plans/*/*.plan"))
    if wanted in ("torch", "tensorrt") and not networks:
        raise EngineError(f"pack {pack.name}: expected weights of networks for {wanted}, got ONNX files only")
    if wanted == "tensorrt" and not plans:
        raise EngineError(f"pack {pack.name}: expected plans, got none: rtdecode engines build {pack.folder}")
    if wanted == "tensorrt" or (wanted == "auto" and gpu and plans):
        why = "asked for" if wanted == "tensorrt" else "a GPU was found, and the pack holds plans"
        return Backend(name="tensorrt", device="cuda", precision="as compiled", reason=why)
    if wanted == "onnx" or (wanted == "auto" and files and not gpu):
        if networks:
            runnable(pack)
        why = (
            "asked for"
            if wanted == "onnx"
            else "the pack holds ONNX files" + ("" if not networks else ", no GPU found")
        )
        return Backend(name="onnx", device="cpu", precision=_precisions(pack), reason=why)
    if not torch:
        raise EngineError(f"pack {pack.name} needs torch: pip install '.[gpu]', or export it elsewhere to ONNX")
    lacking = "ONNX Runtime runs no bfloat16 without a GPU" if without_kernels(pack) else "the pack holds no ONNX files"
    why = "asked for" if wanted == "torch" else "a GPU was found" if gpu else lacking
    device, precision = torch_place()
    return Backend(
        name="torch", device=device, precision=precision, reason=why if gpu else f"{why}; no GPU, so this is slow"
    )


@contextmanager
def import_torch_runtime(pack: EnginePack, threads: int) -> Iterator[None]:
    """Import in its block what needs torch, and give torch its threads.

    Raises
    ------
    EngineError
        Something that the pack needs is not installed.
    """
    try:
        import torch

        yield
    except ImportError as error:
        raise EngineError(
            f"pack {pack.name} needs torch, diffusers and transformers: pip install '.[gpu]' ({error})"
        ) from None
    torch.set_num_threads(threads)


def torch_place() -> tuple[str, str]:
    """Device and precision of networks that torch runs: a GPU in half precision where there is one."""
    return ("cuda", "float16") if _has_gpu() else ("cpu", "float32")


def _precisions(pack: EnginePack) -> str:
    held = {part.precision for part in pack.description.parts.values()}
    return " and ".join(one for one in typing.get_args(PartPrecision)[::-1] if one in held) or "float32"


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
