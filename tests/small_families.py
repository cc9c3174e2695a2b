"""Cut-down packs of MindEye1 and of MIRAGE's imagery decoder, from files in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from engines.importing.diffusion_files import SD_SCALE, autoencoder_config
from engines.importing.mindeye1_files import MindEye1Files, draft_mindeye1
from engines.importing.mirage_imagery_files import MirageImageryFiles, MirageImageryLayout, draft_mirage_imagery
from engines.importing.shapes import mindeye2_sizes
from rtdecode.packs import EnginePack, open_pack
from tests.published import (
    CLIP_TOKENS,
    image_variation_folder,
    mindeye1_state,
    mirage_imagery_files,
    random_state,
    save_last,
    stripped,
)

DIM = 104
_PRIOR = {**mindeye2_sizes("small")["prior"][1], "dim": DIM, "timesteps": 12}


def mindeye1_network(
    folder: Path, voxels: int, *, tokens: int = CLIP_TOKENS, scaling: Path | None = None
) -> MindEye1Files:
    """Files of one participant's network."""
    folder.mkdir(parents=True, exist_ok=True)
    brain = {"voxels": voxels, "hidden": 32, "tokens": tokens, "dim": DIM, "projector": 24, "blocks": 2}
    low = {"voxels": voxels, "hidden": 32, "blocks": 2, "aligned": True}
    state = mindeye1_state(random_state("brain", brain), random_state("prior", _PRIOR | {"tokens": tokens}), 12)
    return MindEye1Files(
        weights=str(save_last(folder / "last.pth", state)),
        low_level=str(save_last(folder / "low.pth", random_state("low_level", low))),
        scaling=None if scaling is None else str(scaling),
    )


def mindeye1_pack(folder: Path, *, voxels: int = 40, samples: int = 3, versatile: bool = True) -> EnginePack:
    """A whole pack, with what draws."""
    network = mindeye1_network(folder / "files", voxels, tokens=CLIP_TOKENS if versatile else 1)
    autoencoder = random_state("autoencoder", autoencoder_config([32, 32], SD_SCALE))
    torch.save(stripped(autoencoder, "vae."), folder / "files" / "vae.pth")
    sources = MindEye1Files(
        weights=network.weights,
        low_level=network.low_level,
        blurry_autoencoder=str(folder / "files" / "vae.pth"),
        generator=str(image_variation_folder(folder / "files" / "diffusers", DIM, versatile=versatile)),
    )
    draft = draft_mindeye1(sources, generator={"samples": samples, "steps": 4, "batch": 2})
    draft.seal(folder / "pack", name="mindeye1", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


def participant_network(folder: Path, voxels: int) -> EnginePack:
    """A participant's own network, with the scaling of its betas."""
    folder.mkdir(parents=True)
    save_file({"mean": torch.zeros(voxels), "scale": torch.full((voxels,), 0.5)}, folder / "scaling.safetensors")
    sources = mindeye1_network(folder / "files", voxels, scaling=folder / "scaling.safetensors")
    draft_mindeye1(sources).seal(folder / "network", name="own", licence="none", precision="float16")
    return open_pack(str(folder / "network"))


def mirage_imagery_pack(folder: Path, *, voxels: int = 40, samples: int = 3, heads: bool = True) -> EnginePack:
    """A whole pack of MIRAGE's imagery decoder."""
    files = mirage_imagery_files(folder / "files", voxels=voxels, dim=DIM)
    if not heads:
        files.pop("ridges")
    layout = MirageImageryLayout(
        coarse=2,
        fine=8,
        shapes={
            "image": [1, DIM],
            "text": [7, 20],
            "prompt": [5, 8],
            "low_level": [132],
            "retrieval": [CLIP_TOKENS, 16],
        },
        generator={"samples": samples, "batch": 2, "steps_c": 4, "steps_b": 2, "low_level_px": 64},
    )
    draft = draft_mirage_imagery(MirageImageryFiles(**files), layout=layout)
    draft.seal(folder / "pack", name="mirage-imagery", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


def categorised(folder: Path, categories: dict[str, str]) -> Path:
    (folder / "categories.json").write_text(json.dumps(categories))
    return folder
