"""The `pack.toml` of the tiny pack."""

from __future__ import annotations

from typing import Any

import tomli_w

from engines.tiny import layout
from rtdecode.bundle import PACK_SCHEMA
from rtdecode.simulate.world import CATEGORIES, PICTURE_PX

PARITY = 1e-4
"""Largest difference that is accepted between a stage and the network it was exported from."""


def pack_toml(figures: dict[str, Any]) -> str:
    """Text of ``pack.toml``; `figures` is the report of the training."""
    tokens = ["batch", layout.TOKENS, layout.CHANNELS]
    picture = ["batch", 3, PICTURE_PX, PICTURE_PX]
    content = {
        "schema": PACK_SCHEMA,
        "name": "tiny",
        "licence": "MIT",
        "description": "Trained from nothing on a procedural picture world; see engines/tiny.",
        "expected_parity": PARITY,
        "categories": list(CATEGORIES),
        "picture": {"height": PICTURE_PX, "width": PICTURE_PX, "colour_space": "sRGB", "range": [0.0, 1.0]},
        "tokens": {
            "count": layout.TOKENS,
            "channels": layout.CHANNELS,
            "groups": {"semantic": [0, layout.SEMANTIC_VALUES], "spatial": [layout.SEMANTIC_VALUES, layout.VALUES]},
        },
        "caption": {"vocabulary": layout.vocabulary(), "pad": layout.PAD, "end": layout.END},
        "prototypes": "prototypes.safetensors",
        "stages": {
            "embedder": {"file": "embedder.onnx", "inputs": {"image": picture}, "outputs": {"tokens": tokens}},
            "adapter": {
                "file": "adapter.onnx",
                "inputs": {
                    "beta": ["batch", "voxels"],
                    "mean": ["voxels"],
                    "scale": ["voxels"],
                    "weights": ["voxels", "components"],
                    "intercept": ["components"],
                    "basis": ["components", layout.VALUES],
                    "token_mean": [layout.VALUES],
                },
                "outputs": {"components": ["batch", "components"], "tokens": tokens},
            },
            "prior": {
                "file": "prior.onnx",
                "inputs": {"tokens": tokens, "r2": ["batch", 2], "category_bias": ["batch", len(CATEGORIES)]},
                "outputs": {"tokens_clean": tokens, "category": ["batch", len(CATEGORIES)]},
            },
            "decoder": {"file": "decoder.onnx", "inputs": {"tokens": tokens}, "outputs": {"image": picture}},
            "captioner": {
                "file": "captioner.onnx",
                "inputs": {"tokens": tokens},
                "outputs": {
                    "words": ["batch", layout.CAPTION_LENGTH],
                    "probability": ["batch", layout.CAPTION_LENGTH],
                },
            },
        },
        "report": figures,
    }
    return tomli_w.dumps(content)
