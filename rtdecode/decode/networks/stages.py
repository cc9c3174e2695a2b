"""The stages of an imported MindEye2 pack as callables on one torch device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.bundle import EnginePack
from rtdecode.decode.mindeye2.engines import Runner, load_engines, tensor_runner
from rtdecode.decode.mindeye2.stages import Refiner, Stages
from rtdecode.decode.mindeye2.unclip import REFINER_SIZES, Compute, size_features
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.engine import TorchEngine
from rtdecode.decode.networks.parts import parts
from rtdecode.decode.networks.prompt import word_numbers
from rtdecode.decode.sampling.edm import guide

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FULL = ("autoencoder", "prior")
"""Kinds of networks that are not in half precision as a whole."""
_REFINER = {"refiner", "refiner_autoencoder", "prompt"}


def load_stages(pack: EnginePack, *, participant: int = 0, device: str = "cpu", precision: str = "float32") -> Stages:
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
    specs: dict[str, Any] = pack.config["stages"]

    def network(name: str, dtype: torch.dtype) -> Any:
        spec = specs[name]
        return load(spec["network"], dict(spec["sizes"]), pack.folder / spec["file"], device=device, dtype=dtype)

    dtype = _DTYPES[precision]
    runner = torch_runner(pack, device=device, precision=precision)
    stages = load_engines(pack, runner, participant=participant)
    return replace(
        stages,
        embed=_embed(network("embedder", dtype)) if "embedder" in specs else None,
        refiner=_refiner(network, device, dtype) if specs.keys() >= _REFINER else None,
    )


def torch_runner(pack: EnginePack, *, device: str, precision: str) -> Runner:
    """Run the parts of a pack by torch; parameters as of `open_stage`."""
    opened: dict[str, TorchEngine] = {}

    def open_part(name: str) -> Compute:
        if name not in opened:
            stage = name.removesuffix("_context")
            opened.update(
                {engine.name: engine for engine in open_stage(pack, stage, device=device, precision=precision)}
            )
        return opened[name].compute

    stages = pack.config["stages"].keys()
    contexts = {"unclip_context"} if "unclip" in stages else set()
    return tensor_runner(stages | contexts, open_part, device=device)


def open_stage(pack: EnginePack, stage: str, *, device: str, precision: str) -> list[TorchEngine]:
    """Load the parts of one stage as a session runs them.

    Parameters
    ----------
    pack : EnginePack
    stage : str
    device : str
        As torch names it.
    precision : {"float32", "float16", "bfloat16"}
        Of the networks. Autoencoders stay in float32 and, in half precision, the prior runs under autocast, both as
        published.
    """
    spec, dtype = pack.config["stages"][stage], _DTYPES[precision]
    kind = spec["network"]
    given = torch.float32 if kind in _FULL else dtype
    network = load(kind, dict(spec["sizes"]), pack.folder / spec["file"], device=device, dtype=given)
    made = parts(stage, spec, network)
    if kind == "prior" and dtype != torch.float32:
        made = [replace(part, module=_Autocast(part.module, dtype)) for part in made]
    # What Transformers does for the captioner's masks need not be possible in a graph.
    return [TorchEngine(part, device=device, dtype=given, graph=kind != "captioner") for part in made]


class _Autocast(nn.Module):  # type: ignore[misc]
    """A network under autocast, its linear layers converted once and for all: the same values, half the memory."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)

    def forward(self, *values: Tensor) -> Any:
        with torch.autocast(values[0].device.type, self._dtype, cache_enabled=False):
            return self.network(*values)


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
