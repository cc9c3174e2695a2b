"""Networks by the names and sizes that a `pack.toml` gives, empty or with their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rtdecode.decode.networks.backbone import Backbone, BackboneShape, Ridge
from rtdecode.decode.networks.brain import BrainNetwork, BrainShape, LowLevel
from rtdecode.decode.networks.captioner import build_captioner
from rtdecode.decode.networks.cascade import EffnetEncoder, StageA, StageB, StageC
from rtdecode.decode.networks.converter import ClipConverter
from rtdecode.decode.networks.embedder import ImageEmbedder, TowerShape
from rtdecode.decode.networks.film_encoder import FilmEncoder, FilmEncoderShape
from rtdecode.decode.networks.gnet import GNet, GNetShape
from rtdecode.decode.networks.image_diffusion import ClipImage, ImageDenoiser
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.networks.prompt import PromptEncoder
from rtdecode.decode.networks.unclip import Autoencoder, Denoiser, SmallAutoencoder
from rtdecode.decode.networks.vdvae import Vdvae, VdvaeShape
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import DESCRIPTION

BUILDERS: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    "ridge": lambda sizes: Ridge(**sizes),
    "backbone": lambda sizes: Backbone(BackboneShape(**sizes)),
    "prior": lambda sizes: PriorNetwork(PriorShape(**sizes)),
    "converter": lambda sizes: ClipConverter(**sizes),
    "captioner": build_captioner,
    "denoiser": Denoiser,
    "autoencoder": Autoencoder,
    "small_autoencoder": lambda sizes: SmallAutoencoder(**sizes),
    "embedder": lambda sizes: ImageEmbedder(TowerShape(**sizes)),
    "prompt": lambda sizes: PromptEncoder(**sizes),
    "brain": lambda sizes: BrainNetwork(BrainShape(**sizes)),
    "low_level": lambda sizes: LowLevel(**sizes),
    "image_denoiser": ImageDenoiser,
    "coder": Autoencoder,
    "clip_image": ClipImage,
    "linear_head": lambda sizes: nn.Linear(sizes["voxels"], sizes["outputs"]),
    "vdvae": lambda sizes: Vdvae(VdvaeShape(**sizes)),
    "effnet": lambda sizes: EffnetEncoder(**sizes),
    "stage_c": StageC,
    "stage_b": StageB,
    "stage_a": StageA,
    "film_encoder": lambda sizes: FilmEncoder(FilmEncoderShape(**sizes)),
    "gnet": lambda sizes: GNet(GNetShape(**sizes)),
}
"""Kind of a network, and what makes one of its sizes."""


def empty(kind: str, sizes: dict[str, Any]) -> nn.Module:
    """Build a network whose weights take no memory; its buffers are real.

    Raises
    ------
    BundleError
        The kind is unknown, or the sizes are not its sizes.
    """
    if kind not in BUILDERS:
        raise BundleError(f"network {kind!r}: expected one of {', '.join(sorted(BUILDERS))}")
    try:
        with init_empty_weights(), _quiet():
            return BUILDERS[kind](sizes).eval()
    except (TypeError, KeyError) as error:
        raise BundleError(f"network {kind!r}: these sizes do not describe one: {error}") from None


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """List what keeps a state dict from being a network's: missing and unexpected keys and other shapes, by name."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    lines = [f"missing {key} {shape}" for key, shape in expected.items() if key not in state]
    lines += [f"unexpected {key} {tuple(value.shape)}" for key, value in state.items() if key not in expected]
    lines += [
        f"{key}: expected {shape}, got {tuple(state[key].shape)}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    return lines


def load(pack: EnginePack, stage: str, *, device: str, dtype: torch.dtype) -> nn.Module:
    """Build the network of a stage and read its weights.

    Parameters
    ----------
    pack : EnginePack
    stage : str
    device : str
        As torch names it.
    dtype : torch.dtype
        Of floating weights.

    Raises
    ------
    EngineError
        ``pack.toml`` describes no such network.
    BundleError
        The file cannot be read or holds other tensors than the network has.
    """
    spec = pack.description.stage(stage)
    try:
        network = empty(spec.network, dict(spec.sizes))
    except BundleError as error:
        raise EngineError(f"pack {pack.name}: {DESCRIPTION}: stages.{stage}.sizes: {error}") from None
    path = pack.folder / spec.file
    try:
        with safe_open(path, framework="pt", device=device) as file:  # one by one: no second copy of all of them
            state = {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file: {error}") from None
    if wrong := differences(network, state):
        raise BundleError(f"{path}: not the weights that pack.toml describes: {'; '.join(wrong[:5])}")
    network.load_state_dict(state, strict=True, assign=True)
    return network.to(device).requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers from warning of token numbers that it does not know of small vocabularies."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
