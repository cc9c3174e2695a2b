"""The stages of an imported MindEye2 pack as callables on one torch device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.decode.families.mindeye2.assembly import INTERNAL, load_engines
from rtdecode.decode.families.mindeye2.mindeye2_stages import MindEye2Stages, Refiner
from rtdecode.decode.families.mindeye2.unclip_step import REFINER_SIZES, size_features
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.prompt import word_numbers
from rtdecode.decode.runtime.torch_runner import DTYPES, torch_runner
from rtdecode.decode.sampling.edm import guide
from rtdecode.packs import EnginePack

_REFINER = {"refiner", "refiner_autoencoder", "prompt"}


def load_stages(
    pack: EnginePack, *, participant: int = 0, device: str = "cpu", precision: str = "float32"
) -> MindEye2Stages:
    """Load the networks of a MindEye2 pack; stages that it lacks are None.

    Parameters
    ----------
    pack : EnginePack
    participant : int
        Which ridge layer of the pack starts; `MindEye2.take_ridge` gives another.
    device : str
        As torch names it.
    precision : {"float32", "float16", "bfloat16"}
        As of `open_stage`.

    Raises
    ------
    EngineError
        The pack lacks what every picture needs, or has no such participant.
    BundleError
        A file is not what ``pack.toml`` describes.
    """
    there = pack.description.stages.keys()

    def network(name: str, dtype: torch.dtype) -> Any:
        return load(pack, name, device=device, dtype=dtype)

    dtype = DTYPES[precision]
    runner = torch_runner(pack, device=device, precision=precision, internal=INTERNAL)
    stages = load_engines(pack, runner, participant=participant)
    return replace(
        stages,
        embed=_embed(network("embedder", dtype)) if "embedder" in there else None,
        refiner=_refiner(network, device, dtype) if there >= _REFINER else None,
    )


def _no_grad(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with torch.inference_mode():
            return function(*args)

    return run


def _level(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, device=x.device, dtype=torch.int64)


def _guided(
    network: nn.Module,
    x: Tensor,
    t: int,
    conditional: tuple[Tensor, Tensor],
    unconditional: tuple[Tensor, Tensor],
    guidance: float,
    dtype: torch.dtype,
) -> Tensor:
    """Noise (b, ...) of tokens and vectors, moved away from the unconditional; both pass as one batch."""
    sides = [conditional] if guidance == 1 else [conditional, unconditional]
    n = len(x)
    tokens = torch.cat([part[0].expand(n, -1, -1) for part in sides]).to(dtype)
    vectors = torch.cat([part[1].expand(n, -1) for part in sides]).to(dtype)
    both = x.to(dtype).repeat(len(sides), 1, 1, 1)
    noise = network(both, _level(t, both), tokens, vectors).float()
    return noise if guidance == 1 else guide(noise[:n], noise[n:], guidance)


def _embed(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return _no_grad(lambda pictures: network(pictures).float())


def _refiner(network: Callable[..., Any], device: str, dtype: torch.dtype) -> Refiner:
    denoiser, prompt = network("refiner", dtype), network("prompt", dtype)
    autoencoder = network("refiner_autoencoder", torch.float32)
    sizes = torch.from_numpy(size_features(REFINER_SIZES)).to(device)[None]

    def condition(text: str) -> tuple[Tensor, Tensor]:
        tokens, pooled = prompt(word_numbers([text]).to(device))
        return tokens.float(), torch.cat([pooled.float(), sizes], 1)

    def noise(x: Tensor, t: int, wanted: Any, unwanted: Any, guidance: float) -> Tensor:
        return _guided(denoiser, x, t, wanted, unwanted, guidance, dtype)

    return Refiner(
        encode=_no_grad(autoencoder.encode),
        prompt=_no_grad(condition),
        noise=_no_grad(noise),
        picture=_no_grad(autoencoder),
        factor=2 ** (len(autoencoder.vae.config.block_out_channels) - 1),
    )
