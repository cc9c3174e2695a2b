"""Pictures to image tokens with a pack's embedder, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdecode.bundle import EnginePack
from rtdecode.decode.engines import OnnxEngine
from rtdecode.errors import EngineError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedder:
    """A loaded embedder.

    Attributes
    ----------
    run : callable
        Pictures (n, 3, h, w) in 0..1 to tokens (n, t, d), float32.
    picture_px : tuple of int or None
        Height and width that it takes; None where it resizes by itself.
    """

    run: Callable[[Float32], Float32]
    picture_px: tuple[int, int] | None


def load_embedder(pack: EnginePack, *, threads: int = 1) -> Embedder:
    """Load the embedder of a pack: by ONNX Runtime, or by torch on a GPU where there is one.

    Raises
    ------
    EngineError
        The pack has none, or torch is not installed.
    """
    spec = pack.config["stages"].get("embedder")
    if spec is None:
        raise EngineError(f"pack {pack.name}: expected a stage embedder, got none; import it with the unCLIP")
    if "network" not in spec:
        engine = OnnxEngine(pack.folder / spec["file"], name=f"{pack.name}/embedder", threads=threads)
        size = int(pack.config["picture"]["height"]), int(pack.config["picture"]["width"])
        return Embedder(run=lambda pictures: engine.run({"image": pictures})["tokens"], picture_px=size)
    try:
        import torch

        from rtdecode.decode.networks.build import load
    except ImportError as error:
        raise EngineError(f"pack {pack.name}/embedder needs torch: pip install '.[gpu]' ({error})") from None
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    network = load("embedder", dict(spec["sizes"]), pack.folder / spec["file"], device=device, dtype=dtype)

    def run(pictures: Float32) -> Float32:
        with torch.no_grad():
            found = network(torch.from_numpy(pictures).to(device))
        return np.asarray(found.float().cpu().numpy())

    return Embedder(run=run, picture_px=None)
