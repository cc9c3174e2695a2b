"""Embeddings of pictures, for retrieval from a pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rtdecode.bundle import EnginePack
from rtdecode.decode.candidates import read_picture
from rtdecode.decode.engines import OnnxEngine
from rtdecode.decode.mindeye2.latents import LATENTS, latent_map
from rtdecode.errors import EngineError
from rtdecode.stimuli import pictures_in

Embed = Callable[[Path], NDArray[np.float32]]


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
        A safetensors file: ``tokens`` (n, t, d), float16, and in its metadata the names and the pack's identity. Of a
        pack with a map to hidden values also ``latents`` (n, hidden), float32, and in the metadata its digest.
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
        The pack has no embedder.
    BundleError
        There are no pictures, two of one name, or one cannot be read.
    """
    found = pictures_in(folder)
    names, paths = list(found), list(found.values())
    embed = _embedder(pack, threads)
    first = embed(paths[0])[0]
    tokens: NDArray[np.float16] = np.empty((len(paths), *first.shape), np.float16)
    for i, path in enumerate(paths):
        tokens[i] = embed(path)[0] if i else first
        progress(i + 1, len(paths))
    arrays: dict[str, NDArray[Any]] = {"tokens": tokens}
    metadata = {"names": json.dumps(names), "pack": pack.identity}
    if LATENTS in pack.config:
        arrays[LATENTS] = latent_map(pack)(tokens)
        metadata[LATENTS] = pack.digest(pack.config[LATENTS]["file"])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out, metadata=metadata)
    return tokens.shape


def _embedder(pack: EnginePack, threads: int) -> Embed:
    """Return what embeds a picture as the decoder does: reduced by the pack's rule, or resized by the network's own."""
    spec = pack.config["stages"].get("embedder")
    if spec is None:
        raise EngineError(f"pack {pack.name}: expected a stage embedder, got none; import it with the unCLIP")
    if "network" not in spec:
        engine = OnnxEngine(pack.folder / spec["file"], name="embedder", threads=threads)
        size = int(pack.config["picture"]["height"]), int(pack.config["picture"]["width"])
        return lambda path: engine.run({"image": _scaled(read_picture(path, size))})["tokens"]
    import torch

    from rtdecode.decode.networks.build import load

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    network = load("embedder", dict(spec["sizes"]), pack.folder / spec["file"], device=device, dtype=dtype)

    def embed(path: Path) -> NDArray[np.float32]:
        with torch.no_grad():
            found = network(torch.from_numpy(_scaled(read_picture(path))).to(device))
        return np.asarray(found.float().cpu().numpy())

    return embed


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Picture (1, 3, h, w) in 0..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)[None] / np.float32(255)
