"""Which library runs the networks of a pack: chosen once, in words, and never changed in a session."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import ModuleType

from rtdecode.bundle import EnginePack
from rtdecode.decode.mindeye1 import MindEye1
from rtdecode.decode.mindeye2.decoder import MindEye2
from rtdecode.decode.mindeye2.engines import Runner, load_engines, onnx_runner, tensorrt_runner
from rtdecode.decode.mindeye2.recipe import Recipe, recipe_of
from rtdecode.errors import EngineError

KIND = "mindeye2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A choice.

    Attributes
    ----------
    name : {"onnx", "torch", "tensorrt"}
    device : str
        As torch names it.
    precision : str
    reason : str
        Why, in one line.
    """

    name: str
    device: str
    precision: str
    reason: str


def choose(wanted: str, pack: EnginePack) -> Backend:
    """Choose what runs a pack.

    Parameters
    ----------
    wanted : {"auto", "onnx", "torch", "tensorrt"}
        ``auto``: TensorRT where the pack holds plans and a GPU is found; else ONNX Runtime where it holds ONNX files
        and no GPU is found; else torch.
    pack : EnginePack

    Raises
    ------
    EngineError
        The pack has nothing that the wanted backend runs, or it is not installed.
    """
    stages = pack.config["stages"].values()
    networks = any("network" in spec for spec in stages)
    files = not networks or "parts" in pack.config
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
        if not files:
            raise EngineError(f"pack {pack.name}: expected ONNX files, got none: rtdecode engines export {pack.folder}")
        why = (
            "asked for"
            if wanted == "onnx"
            else "the pack holds ONNX files" + ("" if not networks else ", no GPU found")
        )
        return Backend(name="onnx", device="cpu", precision="float32", reason=why)
    if not torch:
        raise EngineError(f"pack {pack.name} needs torch: pip install '.[gpu]', or export it elsewhere to ONNX")
    why = "asked for" if wanted == "torch" else "a GPU was found" if gpu else "the pack holds no ONNX files"
    if gpu:
        return Backend(name="torch", device="cuda", precision="float16", reason=why)
    return Backend(name="torch", device="cpu", precision="float32", reason=f"{why}; no GPU, so this is slow")


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
    _check_kind(pack, KIND)
    backend = backend or choose("auto", pack)
    recipe = recipe or recipe_of(pack.config)
    if backend.name != "torch":
        return MindEye2(load_engines(pack, _compiled(pack, backend, threads), participant=participant), recipe)
    networks = _networks(pack, threads)
    stages = networks.load_stages(pack, participant=participant, device=backend.device, precision=backend.precision)
    return MindEye2(stages, recipe)


def load_mindeye1(
    pack: EnginePack, *, backend: Backend | None = None, prior_steps: int | None = None, threads: int = 1
) -> MindEye1:
    """Load a MindEye1 pack.

    Parameters
    ----------
    pack, backend, threads
        As of `load_mindeye2`.
    prior_steps : int or None
        As of `MindEye1`.

    Raises
    ------
    EngineError, BundleError
        As `load_mindeye2`.
    """
    _check_kind(pack, "mindeye1")
    backend = backend or choose("auto", pack)
    if backend.name != "torch":
        return MindEye1(pack, _compiled(pack, backend, threads), prior_steps=prior_steps)
    runner = _networks(pack, threads).torch_runner(pack, device=backend.device, precision=backend.precision)
    return MindEye1(pack, runner, prior_steps=prior_steps)


def _check_kind(pack: EnginePack, kind: str) -> None:
    if pack.config.get("kind") != kind:
        raise EngineError(f"pack {pack.name}: expected kind {kind!r}, got {pack.config.get('kind')!r}")


def _compiled(pack: EnginePack, backend: Backend, threads: int) -> Runner:
    return onnx_runner(pack, threads=threads) if backend.name == "onnx" else tensorrt_runner(pack)


def _networks(pack: EnginePack, threads: int) -> ModuleType:
    """Import what needs torch, and give it its threads."""
    try:
        import torch

        from rtdecode.decode.networks import stages
    except ImportError as error:
        raise EngineError(
            f"pack {pack.name} needs torch, diffusers and transformers: pip install '.[gpu]' ({error})"
        ) from None
    torch.set_num_threads(threads)
    return stages


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
