"""What of a stage is computed in one call: modules with named inputs and outputs, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdecode.decode.networks.captioner import CaptionContext, CaptionStep
from rtdecode.decode.networks.context import ContextDenoiser, DenoiserContext, context_names
from rtdecode.decode.networks.image_diffusion import LatentEncoder
from rtdecode.decode.runtime.runner import LONGEST, WHOLE
from rtdecode.packs.description import Shape, StageTable

CONTEXT_OF = "_context"
"""What the name of a part ends with that computes once a picture what another part needs at every step."""
ENCODER_OF = "_encoder"
"""What the name of a part ends with that makes latents of pictures, beside one that makes pictures of latents."""
FURTHER = {"denoiser": CONTEXT_OF, "image_denoiser": CONTEXT_OF, "captioner": CONTEXT_OF, "coder": ENCODER_OF}
"""Kinds of networks that have a second part, and what its name ends with."""
_SIZES = {"batch": 2, "tokens": 16, "voxels": 64}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One call.

    Attributes
    ----------
    name : str
        Of its engine.
    module : Module
        Takes `inputs` in order and gives a tuple of `outputs`.
    inputs, outputs : dict of str to shape
        A string is a size that varies.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]

    def examples(self, seed: int, **sizes: int) -> dict[str, Tensor]:
        """Draw inputs that are the same everywhere for a seed.

        Parameters
        ----------
        seed : int
        sizes : int
            Sizes that vary, by name; others take small ones.
        """
        generator = torch.Generator().manual_seed(seed)
        known = {**_SIZES, **sizes}
        found = {}
        for name, shape in self.inputs.items():
            counted = [size if isinstance(size, int) else known[size] for size in shape]
            if name in WHOLE:
                found[name] = torch.randint(*WHOLE[name], counted, generator=generator)
            else:
                found[name] = torch.randn(counted, generator=generator)
        return found


class _Tuple(nn.Module):  # type: ignore[misc]
    """Takes any number of inputs and gives the outputs as a tuple, those that the network lacks left out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.network(*values)
        return (found,) if isinstance(found, Tensor) else tuple(one for one in found if one is not None)


class _Ridge(nn.Module):  # type: ignore[misc]
    """A participant's ridge layer, whose weights are inputs: a bundle that was fitted mid-visit rebuilds nothing."""

    def forward(self, betas: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(betas, weight, bias)[:, None]


class _Prior(nn.Module):  # type: ignore[misc]
    """The prior where `keep` (b,) is 1, and what it says of nothing where it is 0 (for guidance)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        kept = keep > 0
        clean: Tensor = self.network(x, t, condition, keep_condition=kept, keep_image=kept)
        return clean


def parts(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    """Return the calls that a stage is made of.

    Parameters
    ----------
    stage : str
        Name of the stage.
    spec : StageTable
    network : Module
        With its weights; a denoiser's cross-attentions are changed.
    """
    special: dict[str, Callable[[str, StageTable, nn.Module], list[Part]]] = {
        "ridge": _ridge,
        "prior": _prior,
        "denoiser": _denoiser,
        "image_denoiser": _denoiser,
        "coder": _coder,
        "captioner": _captioner,
        "embedder": _embedder,
    }
    if spec.network in special:
        return special[spec.network](stage, spec, network)
    return [Part(name=stage, module=_Tuple(network), inputs=dict(spec.inputs), outputs=tuple(spec.outputs))]


def _ridge(stage: str, spec: StageTable, _: nn.Module) -> list[Part]:
    hidden = spec.sizes["hidden"]
    inputs: dict[str, Shape] = {"betas": ["batch", "voxels"], "weight": [hidden, "voxels"], "bias": [hidden]}
    return [Part(name=stage, module=_Tuple(_Ridge()), inputs=inputs, outputs=("hidden",))]


def _prior(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    inputs: dict[str, Shape] = {**spec.inputs, "keep": ["batch"]}
    return [Part(name=stage, module=_Tuple(_Prior(network)), inputs=inputs, outputs=tuple(spec.outputs))]


def _denoiser(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    sizes = spec.inputs
    names = context_names(network)
    context = DenoiserContext(network)
    shapes: list[Shape] = [["batch", heads, "tokens", channels] for heads, channels in context.shapes]
    told = {name: shape for name, shape in sizes.items() if name != "tokens"}
    step = {**told, **dict(zip(names, shapes, strict=True))}
    return [
        Part(
            name=f"{stage}{CONTEXT_OF}",
            module=_Tuple(context),
            inputs={"tokens": sizes["tokens"]},
            outputs=tuple(names),
        ),
        Part(name=stage, module=_Tuple(ContextDenoiser(network)), inputs=step, outputs=("noise",)),
    ]


def _coder(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    sides = spec.outputs["picture"]
    encoder = Part(
        name=f"{stage}{ENCODER_OF}",
        module=_Tuple(LatentEncoder(network)),
        inputs={"picture": sides},
        outputs=("mean", "deviation"),
    )
    decoder = Part(name=stage, module=_Tuple(network), inputs=dict(spec.inputs), outputs=tuple(spec.outputs))
    return [decoder, encoder]


def _captioner(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    features = spec.inputs["features"]
    layers, heads = spec.sizes["num_hidden_layers"], spec.sizes["num_attention_heads"]
    channels = spec.sizes["hidden_size"] // heads
    seen: Shape = ["batch", layers, heads, features[1], channels]
    said: Shape = ["batch", layers, heads, LONGEST, channels]
    step: dict[str, Shape] = {"word": ["batch"], "place": ["batch"], "keys": seen, "values": seen}
    return [
        Part(
            name=f"{stage}{CONTEXT_OF}",
            module=_Tuple(CaptionContext(network)),
            inputs={"features": features},
            outputs=("keys", "values"),
        ),
        Part(
            name=stage,
            module=_Tuple(CaptionStep(network)),
            inputs={**step, "said_keys": said, "said_values": said},
            outputs=("scores", "next_keys", "next_values"),
        ),
    ]


def _embedder(stage: str, spec: StageTable, network: nn.Module) -> list[Part]:
    px = spec.sizes["px"]  # pictures of other sizes are resized before
    inputs: dict[str, Shape] = {"picture": ["batch", 3, px, px]}
    return [Part(name=stage, module=_Tuple(network), inputs=inputs, outputs=tuple(spec.outputs))]
