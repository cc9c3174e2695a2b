"""Embeddings of stimulus pictures, for calibration targets and retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from rtdecode.bundle import EnginePack
from rtdecode.decode.engines import OnnxEngine
from rtdecode.errors import EngineError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_BATCH = 8
Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def embed_folder(
    pack: EnginePack, folder: Path, out: Path, *, threads: int, progress: Callable[[int, int], None]
) -> tuple[int, ...]:
    """Embed every picture of a folder with a pack's embedder.

    Parameters
    ----------
    pack : EnginePack
    folder : Path
        Pictures; a picture's name without suffix is its stimulus identifier.
    out : Path
        A safetensors file: ``tokens`` (n, t, d), float16, and in its metadata the names and the pack's identity.
    threads : int
        CPU threads.
    progress : callable
        Is told how many of how many pictures are done.

    Returns
    -------
    tuple of int
        Shape of the tokens.

    Raises
    ------
    EngineError
        There are no pictures, two of one name, one that cannot be read, or the pack has no embedder.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    names = [path.stem for path in paths]
    if not paths:
        raise EngineError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found none")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise EngineError(f"{folder}: expected one picture of a name, got more of {', '.join(twice[:5])}")
    embed, px = _embedder(pack, threads)
    tokens = []
    for start in range(0, len(paths), _BATCH):
        tokens.append(embed(_pictures(paths[start : start + _BATCH], px)))
        progress(min(start + _BATCH, len(paths)), len(paths))
    every = np.concatenate(tokens).astype(np.float16)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": every}, out, metadata={"names": json.dumps(names), "pack": pack.identity})
    return every.shape


def _embedder(pack: EnginePack, threads: int) -> tuple[Embed, int]:
    """Return what embeds pictures (b, 3, px, px) in 0..1, and px."""
    spec = pack.config["stages"].get("embedder")
    if spec is None:
        raise EngineError(f"pack {pack.name}: expected a stage embedder, got none; import it with the unCLIP")
    if "network" not in spec:
        engine = OnnxEngine(pack.folder / spec["file"], name="embedder", threads=threads)
        return lambda pictures: engine.run({"image": pictures})["tokens"], int(pack.config["picture"]["height"])
    import torch

    from rtdecode.decode.networks.build import load

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    network = load("embedder", dict(spec["sizes"]), pack.folder / spec["file"], device=device, dtype=dtype)

    def embed(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found = network(torch.from_numpy(pictures).to(device))
        return np.asarray(found.float().cpu().numpy())

    return embed, int(spec["sizes"]["px"])


def _pictures(paths: Sequence[Path], px: int) -> NDArray[np.float32]:
    found = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                resized = picture.convert("RGB").resize((px, px), Image.Resampling.BICUBIC)
        except (OSError, ValueError) as error:
            raise EngineError(f"{path}: not a readable picture: {error}") from None
        found.append(np.asarray(resized, np.float32).transpose(2, 0, 1) / 255)
    return np.stack(found)
