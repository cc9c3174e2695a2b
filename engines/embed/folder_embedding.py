"""Embeddings of pictures: to search a pool, to calibrate on, and to distil with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdecode.decode.families.latent_map import LATENTS, latent_map, latents_of
from rtdecode.decode.loading import load_embedder
from rtdecode.decode.runtime.backends import torch_place
from rtdecode.decode.score.candidates import read_picture
from rtdecode.decode.score.mapped import fill_tensors
from rtdecode.decode.score.pool import EXACT_BYTES, NARROW, PROJECTED, narrowed
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.stimuli import pictures_in

_BATCH = 64


def embed_folder(
    pack: EnginePack,
    folder: Path,
    out: Path,
    *,
    threads: int,
    unclip_latents: bool = False,
    exact_bytes: int = EXACT_BYTES,
    progress: Callable[[int, int], None],
) -> tuple[int, ...]:
    """Embed every picture of a folder with a pack's embedder; what is done goes to the disk at once.

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
    unclip_latents : bool
        Whether to add ``latent`` (n, channels, h, w), float16: the pictures as the unCLIP is to make them, scaled, or
        as stage C of Stable Cascade is.
    exact_bytes : int
        Of more bytes of tokens, what an index of them holds is added too; see `ImagePool`.
    progress : callable
        Is told how many of how many pictures are done.

    Returns
    -------
    tuple of int
        Shape of the tokens.

    Raises
    ------
    EngineError
        The pack has no embedder, or no autoencoder for the latents, or what comes of a picture is not numbers.
    BundleError
        There are no pictures, two of one name, or one cannot be read.
    """
    found = pictures_in(folder)
    names, paths = list(found), list(found.values())
    embedder = load_embedder(pack, threads=threads)

    def embed(path: Path) -> NDArray[np.float32]:
        return np.asarray(embedder.run(_scaled(read_picture(path, embedder.picture_px)))[0])

    columns: dict[str, tuple[tuple[int, ...], type]] = {"tokens": (embed(paths[0]).shape, np.float16)}
    rows: dict[str, Callable[[Path], NDArray[np.float32]]] = {"tokens": embed}
    metadata = {"names": json.dumps(names), "embedder": pack.digest(pack.description.stage("embedder").file)}
    of_tokens: dict[str, Callable[[NDArray[Any]], NDArray[np.float32]]] = {}
    if (table := latents_of(pack)) is not None:
        mapping = of_tokens[LATENTS] = latent_map(pack)
        columns[LATENTS] = (mapping.intercept.shape, np.float32)
        metadata[LATENTS] = pack.digest(table.file)
    if unclip_latents:
        rows["latent"] = _coarse_encoder(pack) if "effnet" in pack.description.stages else _encoder(pack)
        columns["latent"] = (rows["latent"](paths[0]).shape, np.float16)
    values = math.prod(columns["tokens"][0])
    if len(paths) * values * np.dtype(columns["tokens"][1]).itemsize > exact_bytes:
        of_tokens[PROJECTED] = lambda tokens: narrowed(tokens.reshape(len(tokens), -1))
        columns[PROJECTED] = ((min(NARROW, values),), np.float32)
    shapes = {name: ((len(paths), *shape), dtype) for name, (shape, dtype) in columns.items()}
    with fill_tensors(out, shapes, metadata) as arrays:
        for i, path in enumerate(paths):
            for name, make in rows.items():
                arrays[name][i] = _numbers(make(path), path, arrays[name].dtype)
            if (i + 1) % _BATCH == 0 or i + 1 == len(paths):
                block = slice(i // _BATCH * _BATCH, i + 1)
                for name, make_all in of_tokens.items():
                    arrays[name][block] = make_all(arrays["tokens"][block])
            progress(i + 1, len(paths))
    return shapes["tokens"][0]


def _encoder(pack: EnginePack) -> Callable[[Path], NDArray[np.float32]]:
    """Encode pictures at the height and width that the unCLIP makes."""
    said = pack.description
    if not {"unclip", "autoencoder"} <= said.stages.keys() or not said.stages["autoencoder"].network:
        raise EngineError(f"pack {pack.name}: expected stages unclip and autoencoder with weights, as imported")
    import torch

    from rtdecode.decode.networks.build import load

    device, _ = torch_place()
    network: Any = load(pack, "autoencoder", device=device, dtype=torch.float32)
    px = said.size("unclip", "sample_size") * 2 ** (len(said.stages["autoencoder"].sizes["block_out_channels"]) - 1)

    def encode(path: Path) -> NDArray[np.float32]:
        picture = Image.fromarray(read_picture(path)).resize((px, px), Image.Resampling.BICUBIC)
        given = torch.from_numpy(_scaled(np.asarray(picture)) * 2 - 1).to(device)
        with torch.no_grad():
            return np.asarray(network.encode(given)[0].cpu().numpy())

    return encode


def _coarse_encoder(pack: EnginePack) -> Callable[[Path], NDArray[np.float32]]:
    """Encode pictures for stage C, at the height and width that its picture encoder takes."""
    import torch

    from rtdecode.decode.networks.build import load

    device, _ = torch_place()
    network: Any = load(pack, "effnet", device=device, dtype=torch.float32)
    px = int(pack.description.stage("effnet").inputs["picture"][2])

    def encode(path: Path) -> NDArray[np.float32]:
        picture = Image.fromarray(read_picture(path)).resize((px, px), Image.Resampling.BICUBIC)
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(_scaled(np.asarray(picture))).to(device))[0].cpu().numpy())

    return encode


def _numbers(values: NDArray[np.float32], path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in the type they are kept in."""
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    if not np.isfinite(kept).all():
        raise EngineError(
            f"{path}: expected numbers from the embedder, got NaN or inf in {dtype}: check the pack with "
            "rtdecode engines verify"
        )
    return kept


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Picture (1, 3, h, w) in 0..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)[None] / np.float32(255)
