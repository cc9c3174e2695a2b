"""Published networks of every kind, each as small as it can be: for tests that export all of a pack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.importing import fake
from engines.importing.diffusion_files import SD_SCALE
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.networks.unclip import autoencoder_config, unclip_config
from rtdecode.packs import EnginePack, open_pack


def thin_mindeye2(out: Path, stages: Sequence[str]) -> EnginePack:
    """Write and open a MindEye2 pack of random weights in float32."""
    sizes = mindeye2_sizes("small")
    dim = sizes["backbone"][1]["dim"]
    unet = unclip_config(channels=(32, 64), depth=(1, 1), head_channels=32, context=dim, side=8)
    thin = {"unclip": ("denoiser", unet | {"layers_per_block": 1})}
    thin["autoencoder"] = ("autoencoder", autoencoder_config((32, 32)))
    thin["blurry_autoencoder"] = ("autoencoder", autoencoder_config((32, 32), SD_SCALE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "mindeye2_sizes", lambda _: {**sizes, **thin})
        fake.write_fake_mindeye2(out, dims="small", stages=stages, precision="float32")
    return open_pack(str(out))
