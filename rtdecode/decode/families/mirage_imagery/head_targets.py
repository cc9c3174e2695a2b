"""Pictures to what the heads of a session predict: CLIP-L's embedding and tokens, and latents of the very deep VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdecode.decode.families.family import Embedder, Float32
from rtdecode.decode.families.mirage_imagery.frozen_statistics import unit_rows
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import MirageImageryDescription
from rtdecode.decode.runtime.backends import import_torch_runtime, torch_place
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack


def head_embedder(pack: EnginePack, *, threads: int) -> Embedder:
    """Load it; see `Family.embedder`. All targets of a picture are one row, in the order of ``tokens.groups``.

    Latents are their posteriors' means, where the published training draws them: a ridge learns the mean of either.

    Raises
    ------
    EngineError
        The pack lacks a network, or what runs it is not installed.
    """
    said = pack.described(MirageImageryDescription)
    needed = {"image": "embedder", "retrieval": "embedder", "low_level": "vdvae"}
    for group in said.tokens.groups:
        if needed.get(group, "") not in said.stages:
            raise EngineError(f"pack {pack.name}: expected what makes targets of {group}, got no such stage")
    with import_torch_runtime(pack, threads):
        import torch

        from rtdecode.decode.networks.build import load
        from rtdecode.decode.runtime.torch_runner import DTYPES
    device, precision = torch_place()
    clip: Any = load(pack, "embedder", device=device, dtype=DTYPES[precision]) if "embedder" in said.stages else None
    vdvae: Any = load(pack, "vdvae", device=device, dtype=torch.float32) if "low_level" in said.tokens.groups else None

    def run(pictures: Float32) -> Float32:
        found: dict[str, NDArray[np.floating[Any]]] = {}
        with torch.no_grad():
            if clip is not None:
                hidden, _, pooled = clip(torch.from_numpy(pictures).to(device))
                found["image"] = pooled.float().cpu().numpy()
                found["retrieval"] = unit_rows(hidden.float().cpu().numpy())
            if vdvae is not None:
                shape = vdvae.shape
                given = torch.from_numpy(_small(pictures, shape.image_size)).to(device)
                found["low_level"] = vdvae.encode(given)[:, : shape.given_size].cpu().numpy()
        rows = [found[group].reshape(len(pictures), -1) for group in said.tokens.groups]
        return np.concatenate(rows, axis=1)[:, None].astype(np.float32)

    return Embedder(run=run, picture_px=None)


def _small(pictures: Float32, px: int) -> Float32:
    """Reduce pictures (n, 3, h, w) in 0..1 to bytes (n, px, px, 3), as numbers."""
    whole = np.rint(pictures.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    small = [Image.fromarray(one).resize((px, px), Image.Resampling.BILINEAR) for one in whole]
    return np.stack([np.asarray(one, np.float32) for one in small])
