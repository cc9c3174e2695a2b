"""Networks whose features the papers compare; weights are read from this machine only, and torch is imported late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.resample import bilinear

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_BATCH = 16

Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A layer of a network with published weights.

    Attributes
    ----------
    name : str
        As in the papers' tables.
    file : str
        Of its weights.
    px : int
        Height and width that it is given.
    build : callable
        Is given torch's state dict; returns what maps normalised pictures to features.
    distance : bool
        Compared by correlation distance (lower is better) instead of two-way identification.
    clip : bool
        Normalised as CLIP's pictures are.
    """

    name: str
    file: str
    px: int
    build: Callable[[dict[str, Any]], Callable[[Any], Any]]
    distance: bool = False
    clip: bool = False


def _alexnet(layers: int) -> Callable[[dict[str, Any]], Callable[[Any], Any]]:
    def build(state: dict[str, Any]) -> Callable[[Any], Any]:
        from torchvision.models import alexnet

        network = alexnet()
        network.load_state_dict(state)
        return network.eval().features[: layers + 1]  # type: ignore[no-any-return]

    return build


def _inception(state: dict[str, Any]) -> Callable[[Any], Any]:
    import torch
    from torchvision.models import inception_v3

    network = inception_v3(init_weights=False, transform_input=True)
    network.load_state_dict(state)
    network.fc = torch.nn.Identity()  # features are those of the average pool
    return network.eval()  # type: ignore[no-any-return]


def _efficientnet(state: dict[str, Any]) -> Callable[[Any], Any]:
    import torch
    from torchvision.models import efficientnet_b1

    network = efficientnet_b1()
    network.load_state_dict(state)
    network.classifier = torch.nn.Identity()
    return network.eval()  # type: ignore[no-any-return]


def _swav(state: dict[str, Any]) -> Callable[[Any], Any]:
    import torch
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = torch.nn.Identity()
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    kept = {key: value for key, value in plain.items() if not key.startswith(("projection_head", "prototypes"))}
    network.load_state_dict(kept)
    return network.eval()  # type: ignore[no-any-return]


def clip(name: str, state: dict[str, Any]) -> Any:
    """OpenAI's CLIP by open_clip's name of its shape, with its weights."""
    import open_clip

    network = open_clip.CLIP(**open_clip.get_model_config(name), quick_gelu=True)
    network.load_state_dict(state)
    return network.eval()


def _clip_image(state: dict[str, Any]) -> Callable[[Any], Any]:
    return clip("ViT-L-14", state).encode_image  # type: ignore[no-any-return]


FEATURES = (
    Feature(name="AlexNet(2)", file="alexnet-owt-7be5be79.pth", px=256, build=_alexnet(4)),
    Feature(name="AlexNet(5)", file="alexnet-owt-7be5be79.pth", px=256, build=_alexnet(11)),
    Feature(name="Inception", file="inception_v3_google-0cc3c7bd.pth", px=342, build=_inception),
    Feature(name="CLIP", file="ViT-L-14-openai.safetensors", px=224, build=_clip_image, clip=True),
    Feature(name="EffNet-B", file="efficientnet_b1-c27df63c.pth", px=255, build=_efficientnet, distance=True),
    Feature(name="SwAV", file="swav_800ep_pretrain.pth.tar", px=224, build=_swav, distance=True),
)


def default_weights() -> Path:
    """Where torchvision keeps the weights that it has downloaded."""
    return Path.home() / ".cache" / "torch" / "hub" / "checkpoints"


def load(feature: Feature, folder: Path) -> Features:
    """Return what maps pictures (n, 3, h, w) in 0..1 to features (n, d).

    Raises
    ------
    FileNotFoundError
        The weights are not in the folder.
    ImportError, RuntimeError, ValueError
        Torch or torchvision is missing, or the file is not what its name says.
    """
    path = folder / feature.file
    if not path.is_file():
        raise FileNotFoundError(str(path))
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise ValueError(f"{path} is no file of weights: {str(error).splitlines()[0]}") from None
    network = feature.build(state)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (_CLIP if feature.clip else _IMAGENET))

    def features(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(pictures), _BATCH):
            batch = (bilinear(pictures[start : start + _BATCH], feature.px) - mean) / std
            with torch.no_grad():
                found.append(network(torch.from_numpy(batch.astype(np.float32))).flatten(1).numpy())
        return np.concatenate(found)

    return features
