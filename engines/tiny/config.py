"""The `pack.toml` of the tiny pack (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w
import torch
from torch import Tensor

from engines.tiny import layout
from engines.tiny.diffusion import LATENT_CHANNELS, LATENT_SIDE
from engines.tiny.pipelines import PRIOR_STEPS, TEMPERATURE
from engines.tiny.stages import Stage
from engines.tiny.students import GUIDANCE
from engines.tiny.tiny_prior import TIMESTEPS
from rtdecode.decode.sampling.edm import LEVELS
from rtdecode.packs.description import PACK_SCHEMA
from rtdecode.simulate.world import CATEGORIES, PICTURE_PX

PARITY = 1e-4
"""Largest difference that is accepted between a stage and the network it was exported from."""


UNCLIP_STEPS = 2


def pack_toml(networks: Mapping[str, Stage], figures: dict[str, Any]) -> str:
    """Text of ``pack.toml``; `figures` is the report of the training."""
    outputs = {
        "tokens": ["batch", layout.TOKENS, layout.CHANNELS],
        "components": ["batch", "components"],
        **{name: shape for stage in networks.values() for name, shape in _shapes(stage).items()},
    }
    stages = {
        name: {
            "file": f"{name}.onnx",
            "inputs": {key: _shape(value) for key, value in stage.inputs.items()},
            "outputs": {key: outputs[key] for key in stage.outputs},
        }
        for name, stage in networks.items()
    }
    stages["adapter"] = {
        "file": "adapter.onnx",
        "inputs": layout.ADAPTER_INPUTS,
        "outputs": {name: outputs[name] for name in ("components", "tokens")},
    }
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
        "sampling": {
            "prior": {"schedule": "cosine", "levels": TIMESTEPS, "steps": PRIOR_STEPS},
            "unclip": {
                "schedule": "sgm",
                "levels": LEVELS,
                "steps": UNCLIP_STEPS,
                "guidance_baked_in": GUIDANCE,
                "temperature": TEMPERATURE,
                "latent": [LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE],
            },
        },
        "stages": stages,
        "report": figures,
    }
    return tomli_w.dumps(content)


def _shape(value: Tensor) -> list[str | int]:
    return ["batch", *value.shape[1:]]


def _shapes(stage: Stage) -> dict[str, list[str | int]]:
    with torch.no_grad():
        values = stage.module(*stage.inputs.values())
    values = values if isinstance(values, tuple) else (values,)
    return {name: _shape(value) for name, value in zip(stage.outputs, values, strict=True)}
