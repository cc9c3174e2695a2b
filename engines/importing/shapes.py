"""Sizes of MindEye2's stages: as published, and cut down for tests and machines without a GPU."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rtdecode.decode.networks.backbone import BackboneShape
from rtdecode.decode.networks.embedder import TowerShape
from rtdecode.decode.networks.prior import PriorShape
from rtdecode.decode.networks.prompt import BIGG_CONFIG, CLIP_L_CONFIG
from rtdecode.decode.networks.unclip import SD_SCALE, autoencoder_config, unclip_config

Sizes = dict[str, tuple[str, dict[str, Any]]]
_LAYOUTS = ("small", "cut", "full")


def mindeye2_sizes(dims: str) -> Sizes:
    """Kind and sizes of every stage.

    Parameters
    ----------
    dims : {"small", "cut", "full"}
        ``full`` as published; ``cut`` has the published token layout and the published kinds of layers, but few of
        them; ``small`` is small in every way.

    Raises
    ------
    ValueError
        `dims` is none of them.
    """
    if dims not in _LAYOUTS:
        raise ValueError(f"dims: expected one of {', '.join(_LAYOUTS)}, got {dims!r}")
    full, small = dims == "full", dims == "small"
    tower = TowerShape()
    if small:
        tower = TowerShape(px=56, width=104, layers=2, heads=1, hidden=256, out=80)
    elif not full:
        tower = TowerShape(layers=1)
    tokens, dim = (tower.px // tower.patch) ** 2, tower.width
    features = 64 if small else 1024
    prior = PriorShape(tokens=tokens, dim=dim, depth=1, heads=2)
    unet: dict[str, Any] = {"channels": (64, 64, 128), "depth": (1, 1, 2), "side": 8}
    text, pooled = CLIP_L_CONFIG, BIGG_CONFIG
    if not full:
        text = CLIP_L_CONFIG | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 1, "projection_dim": 64}
        pooled = BIGG_CONFIG | {"width": 64, "heads": 1, "layers": 2, "output_dim": 48}
    joint = text["hidden_size"] + pooled["width"]
    vector = pooled["output_dim"] + 6 * 256
    channels = (128, 256, 512, 512) if full else (32, 32, 32, 32)
    backbone = BackboneShape(hidden=4096 if full else 64, tokens=tokens, dim=dim, blocks=0)
    return {
        "ridge": ("ridge", {"voxels": [15724] if full else [96], "hidden": backbone.hidden}),
        "backbone": ("backbone", asdict(backbone)),
        "prior": ("prior", asdict(PriorShape() if full else prior)),
        "converter": (
            "converter",
            {"tokens": tokens, "dim": dim, "out_tokens": tokens + 1, "out_dim": features},
        ),
        "captioner": ("captioner", _git(tower, features, full=full)),
        "unclip": ("denoiser", unclip_config(context=dim) if full else unclip_config(context=dim, **unet)),
        "autoencoder": ("autoencoder", autoencoder_config(channels)),
        "small_autoencoder": ("small_autoencoder", {"channels": 64 if full else 32, "blocks": [3, 3, 3, 1]}),
        "blurry_autoencoder": ("autoencoder", autoencoder_config(channels, SD_SCALE)),
        "embedder": ("embedder", asdict(tower)),
        "refiner": (
            "denoiser",
            unclip_config(context=joint, vector=vector, **({} if full else unet)),
        ),
        "refiner_autoencoder": ("autoencoder", autoencoder_config(channels)),
        "prompt": ("prompt", {"clip_l": text, "bigg": pooled}),
    }


def _git(tower: TowerShape, features: int, *, full: bool) -> dict[str, Any]:
    vision = {"hidden_size": features, "image_size": tower.px, "patch_size": tower.patch}
    sizes: dict[str, Any] = {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "pad_token_id": 0,
        "vision_config": vision | {"num_attention_heads": 16, "intermediate_size": 4096},
    }
    if not full:
        sizes |= {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 128}
    return sizes
