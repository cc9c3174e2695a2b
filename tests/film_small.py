"""A small MIRAGE (encoding) pack of random weights, and features of a film that does not exist."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from engines.film.features import FEATURES_SCHEMA, VALUES, FeatureTable, FilmFeatures, open_features, write_about
from engines.importing.mirage_encoding_files import MirageEncodingFiles, draft_mirage_encoding
from rtdecode.decode.networks.film_encoder import MODALITIES, FilmEncoder, FilmEncoderShape, rotary_frequencies
from rtdecode.packs import EnginePack, open_pack
from rtdecode.packs.sealed import seal

SHAPE = FilmEncoderShape(
    layers=5, features=16, queries=3, projected=64, hidden=192, depth=1, heads=3, multiple=1, places=320, parcels=6
)


def small_encoder(seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in FilmEncoder(SHAPE).state_dict().items():
        scale = 0.1 if value.ndim < 2 else value.shape[-1] ** -0.5
        state[name] = torch.randn(value.shape, generator=generator) * scale
    state["temporal_encoder.encoder.rotary_pos_emb.inv_freq"] = rotary_frequencies(SHAPE.hidden // SHAPE.heads)
    return state


def small_pack(folder: Path, *, members: int = 1) -> EnginePack:
    """A pack as imported."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"model-{seed}.safetensors" for seed in range(members)]
    for seed, path in enumerate(paths):
        save_file(small_encoder(seed), path)
    sources = MirageEncodingFiles(weights=[str(path) for path in paths], layers=SHAPE.layers)
    draft = draft_mirage_encoding(sources)
    assert draft.stages["member_1"].sizes == asdict(SHAPE)
    draft.seal(folder / "pack", name="small", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


def small_features(folder: Path, duration_s: float, *, absent: tuple[str, ...] = (), seed: int = 0) -> FilmFeatures:
    """Random features of a film."""
    about = FeatureTable(
        film="none",
        duration_s=duration_s,
        layers=SHAPE.layers,
        values=SHAPE.features,
        absent=dict.fromkeys(absent, "the film has none"),
    )

    def write(target: Path) -> None:
        write_about(target, about)
        generator = torch.Generator().manual_seed(seed)
        for name in MODALITIES:
            values = torch.randn(about.frames, SHAPE.layers, SHAPE.features, generator=generator)
            if name not in absent:
                save_file({VALUES: values.bfloat16()}, target / f"{name}.safetensors")

    seal(folder, FEATURES_SCHEMA, write)
    return open_features(folder)
