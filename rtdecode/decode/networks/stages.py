"""The stages of an imported MindEye2 pack as callables on one torch device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.bundle import EnginePack
from rtdecode.decode.mindeye2.stages import Hidden, Refiner, Stages
from rtdecode.decode.mindeye2.unclip import Unclip
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.captioner import Captioner
from rtdecode.decode.networks.engine import TorchEngine
from rtdecode.decode.networks.parts import parts
from rtdecode.decode.networks.prompt import word_numbers
from rtdecode.decode.networks.unclip import REFINER_SIZES, UNCLIP_SIZES, Autoencoder, size_features
from rtdecode.decode.sampling.edm import guide
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError

NEEDED = ("ridge", "backbone", "prior")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        Of the large networks. Autoencoders stay in float32, and in half precision the prior runs under autocast, both
        as published.

    Raises
    ------
    EngineError
        The pack lacks what every picture needs, or has no such participant.
    BundleError
        A file is not what ``pack.toml`` describes.
    """
    config = pack.config
    specs: dict[str, Any] = config["stages"]
    if missing := [name for name in NEEDED if name not in specs]:
        raise EngineError(f"pack {pack.name}: missing stages {', '.join(missing)}; import the weights again")
    dtype = _DTYPES[precision]

    def network(name: str, as_dtype: torch.dtype = dtype, *, on: str = device) -> Any:
        spec = specs[name]
        return load(spec["network"], spec["sizes"], pack.folder / spec["file"], device=on, dtype=as_dtype)

    def optional(name: str, make: Callable[[Any], Any], as_dtype: torch.dtype = dtype) -> Any:
        return make(network(name, as_dtype)) if name in specs else None

    ridges = network("ridge", torch.float32, on="cpu").linears
    if not 0 <= participant < len(ridges):
        raise EngineError(f"pack {pack.name}: expected a participant from 0 to {len(ridges) - 1}, got {participant}")
    ridge = ridges[participant]
    prior, backbone = network("prior", torch.float32), network("backbone")
    return Stages(
        ridge=(ridge.weight.numpy(), ridge.bias.numpy()),
        schedule=cosine_schedule(prior.shape.timesteps),
        backbone=_backbone(backbone, dtype),
        prior=_prior(prior, device, dtype),
        caption=_caption(pack, network) if {"converter", "captioner"} <= specs.keys() else None,
        unclip=optional("unclip", lambda made: _unclip(specs["unclip"], made, device, dtype)),
        latent_side=int(specs["unclip"]["sizes"]["sample_size"]) if "unclip" in specs else 0,
        picture=optional("autoencoder", _decode, torch.float32),
        blurry=optional("blurry_autoencoder", _decode, torch.float32) if backbone.shape.low_level else None,
        embed=optional("embedder", _embed),
        refiner=_refiner(network, device, dtype)
        if {"refiner", "refiner_autoencoder", "prompt"} <= specs.keys()
        else None,
        array=lambda values: torch.from_numpy(values).to(device),
        host=lambda values: values.float().cpu().numpy(),
    )


def _no_grad(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with torch.inference_mode():
            return function(*args)

    return run


def _backbone(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Hidden]:
    def run(hidden: Tensor) -> Hidden:
        out = network(hidden.to(dtype)[:, None])
        latent = None if out.latent is None else out.latent.float()
        return Hidden(tokens=out.tokens.float(), retrieval=out.retrieval.float(), latent=latent)

    return _no_grad(run)


def _prior(network: nn.Module, device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(x: Tensor, t: int, condition: Tensor, cond_scale: float) -> Tensor:
        kind = torch.device(device).type
        with torch.autocast(kind, dtype=dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32):
            clean: Tensor = network.guided(x, _level(t, x), condition, cond_scale=cond_scale)
        return clean.float()

    return _no_grad(run)


def _unclip(spec: Mapping[str, Any], network: nn.Module, device: str, dtype: torch.dtype) -> Unclip:
    engines = [TorchEngine(part, device=device, dtype=dtype) for part in parts("unclip", spec, network)]
    vector = size_features(UNCLIP_SIZES).to(device, dtype)
    first, step = (engine.compute for engine in engines)
    return Unclip(
        context_part=first,
        step_part=lambda values: {name: value.float() for name, value in step(values).items()},
        vector=vector,
        join=torch.cat,
        level=lambda t, rows: _level(t, rows),
    )


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


def _decode(network: Autoencoder) -> Callable[[Tensor], Tensor]:
    return _no_grad(lambda latent: network(latent))


def _embed(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return _no_grad(lambda pictures: network(pictures).float())


def _caption(pack: EnginePack, network: Callable[[str], Any]) -> Callable[[Tensor], list[str]]:
    converter = network("converter")
    captioner = Captioner(network("captioner"), pack.folder / "captioner")
    return _no_grad(lambda tokens: captioner(converter(tokens.to(converter.linear1.weight.dtype))))


def _refiner(network: Callable[..., Any], device: str, dtype: torch.dtype) -> Refiner:
    denoiser, prompt = network("refiner"), network("prompt")
    autoencoder = network("refiner_autoencoder", torch.float32)
    sizes = size_features(REFINER_SIZES).to(device)[None]

    def condition(text: str) -> tuple[Tensor, Tensor]:
        tokens, pooled = prompt(word_numbers([text]).to(device))
        return tokens.float(), torch.cat([pooled.float(), sizes], 1)

    def noise(x: Tensor, t: int, wanted: Any, unwanted: Any, guidance: float) -> Tensor:
        return _guided(denoiser, x, t, wanted, unwanted, guidance, dtype)

    return Refiner(
        encode=_no_grad(autoencoder.encode),
        prompt=_no_grad(condition),
        noise=_no_grad(noise),
        picture=_decode(autoencoder),
        factor=2 ** (len(autoencoder.vae.config.block_out_channels) - 1),
    )
