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
from rtdecode.decode.embedding import load_embedder
from rtdecode.decode.mindeye2.latents import LATENTS, latent_map
from rtdecode.stimuli import pictures_in


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
        A safetensors file: ``tokens`` (n, t, d), float16, and in its metadata the names and the embedder's digest. Of a
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
    embedder = load_embedder(pack, threads=threads)

    def embed(path: Path) -> NDArray[np.float32]:
        return np.asarray(embedder.run(_scaled(read_picture(path, embedder.picture_px)))[0])

    first = embed(paths[0])
    tokens: NDArray[np.float16] = np.empty((len(paths), *first.shape), np.float16)
    for i, path in enumerate(paths):
        tokens[i] = embed(path) if i else first
        progress(i + 1, len(paths))
    arrays: dict[str, NDArray[Any]] = {"tokens": tokens}
    metadata = {"names": json.dumps(names), "embedder": pack.digest(pack.config["stages"]["embedder"]["file"])}
    if LATENTS in pack.config:
        arrays[LATENTS] = latent_map(pack)(tokens)
        metadata[LATENTS] = pack.digest(pack.config[LATENTS]["file"])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out, metadata=metadata)
    return tokens.shape


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Picture (1, 3, h, w) in 0..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)[None] / np.float32(255)
