"""Stages that draw pictures of image tokens: Versatile Diffusion's image flow, or SD Image Variations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from engines.importing import interfaces
from engines.importing.configs import config_of, weights_in
from engines.importing.drafts import Draft, DraftStage
from engines.importing.keys import Ledger, rename_attention
from engines.importing.lora_files import GENERATOR, FusedLora, LoraOrder, fuse, generator_table, keeps_guidance
from engines.importing.weight_files import read
from rtdecode.decode.networks.image_diffusion import CLIP_L, IMAGE_UNET
from rtdecode.decode.networks.unclip import SD_SCALE, autoencoder_config
from rtdecode.errors import CheckpointError

_UNETS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CLIP_FILES = ("model.safetensors", "pytorch_model.bin")
_GENERATORS: dict[bool, dict[str, Any]] = {
    True: {"kind": "versatile-diffusion"},
    False: {"kind": "image-variations", "guidance": 7.5},
}
_TEXT_HALF = r".*\.transformers\.1\..*"


def add_picture_generator(
    draft: Draft, folder: str, ignored: list[str], *, lora: LoraOrder | None = None
) -> dict[str, Any]:
    """Add ``generator``, ``generator_coder`` and ``embedder`` from a folder of diffusers.

    A few-step LoRA is fused into the first, its sampler noted in `draft`.

    Parameters
    ----------
    draft : Draft
    folder : str
        As of `weights_in`: with ``image_unet`` (Versatile Diffusion) or ``unet`` (SD Image Variations), ``vae`` and
        ``image_encoder``.
    ignored : list of str
        Regular expressions of unexpected keys to leave out.
    lora : LoraOrder or None

    Returns
    -------
    dict of str
        How it draws, as far as that is not what `GeneratorTable` says by itself.

    Raises
    ------
    CheckpointError
        A file is missing, or a key is missing, unexpected or of another shape.
    """
    versatile, path = _unet_of(folder)
    table = dict(_GENERATORS[versatile])
    side, fused = _add_denoiser(draft, path, ignored, lora)
    if fused is not None:
        draft.tables["generator_lora"] = generator_table(fused)
        table |= {"steps": fused.steps} | ({} if keeps_guidance(fused) else {"guidance": 1.0})
    _add_coder(draft, weights_in(f"{folder}/vae", *_UNETS), side, ignored)
    px = draft.stages["generator_coder"].interface[1]["picture"][2]
    assert isinstance(px, int)
    add_clip_image(draft, weights_in(f"{folder}/image_encoder", *CLIP_FILES), ignored, px=px)
    return table


def add_clip_image(draft: Draft, path: Path, ignored: list[str], *, px: int) -> None:
    """Add ``embedder`` from the weights of CLIP's vision tower with its projection; pictures come at `px`."""
    ledger = Ledger(path.name, read(path))
    ledger.drop(r"vision_model\.embeddings\.position_ids", "counts up from 0")
    ledger.drop(r"(text_model|text_projection)\..*|logit_scale", "text side of the embedder, which sees pictures only")
    sizes = config_of(path, CLIP_L)
    stage = DraftStage(
        kind="clip_image",
        sizes=sizes,
        interface=interfaces.clip_image(px, sizes),
        state={f"clip.{key}": value for key, value in ledger.take("").items()},
        source=ledger.source,
    )
    draft.add("embedder", stage)
    draft.dropped[f"image_encoder/{path.name}"] = ledger.close(ignored)


def _unet_of(folder: str) -> tuple[bool, Path]:
    try:
        return True, weights_in(f"{folder}/image_unet", *_UNETS)
    except CheckpointError as first:
        try:
            return False, weights_in(f"{folder}/unet", *_UNETS)
        except CheckpointError as second:
            raise CheckpointError(f"{folder}: expected image_unet or unet ({first}; {second})") from None


def _add_denoiser(draft: Draft, path: Path, ignored: list[str], lora: LoraOrder | None) -> tuple[int, FusedLora | None]:
    ledger = Ledger(path.name, read(path))
    ledger.drop(_TEXT_HALF, "the text half, whose share is 0")
    sizes = config_of(path, IMAGE_UNET, UNet2DConditionModel)
    sizes.pop("dual_cross_attention", None)
    side = int(sizes.setdefault("sample_size", IMAGE_UNET["sample_size"]))
    state = {_plain(key): value for key, value in ledger.take("").items()}
    fused = None if lora is None else fuse(lora, GENERATOR, state, {}, ignored)
    if fused is not None:
        state = fused.state
        draft.dropped[fused.source] = fused.dropped
    stage = DraftStage(
        kind="image_denoiser",
        sizes=sizes,
        interface=interfaces.image_denoiser(sizes),
        state={f"unet.{key}": value for key, value in state.items()},
        source=ledger.source,
    )
    draft.add("generator", stage)
    draft.dropped[f"unet/{path.name}"] = ledger.close(ignored)
    return side, fused


def _plain(key: str) -> str:
    """Name of a weight of a dual transformer's image half in a UNet of one half."""
    return key.replace(".transformers.0.", ".")


def _add_coder(draft: Draft, path: Path, side: int, ignored: list[str]) -> None:
    ledger = Ledger(path.name, read(path))
    state: dict[str, Tensor] = rename_attention(ledger.take(""))
    published: dict[str, Any] = autoencoder_config(scaling=SD_SCALE)
    sizes = config_of(path, published, AutoencoderKL)
    sizes.setdefault("scaling_factor", SD_SCALE)
    stage = DraftStage(
        kind="coder",
        sizes=sizes,
        interface=interfaces.autoencoder(side, sizes),
        state={f"vae.{key}": value for key, value in state.items()},
        source=ledger.source,
    )
    draft.add("generator_coder", stage)
    draft.dropped[f"vae/{path.name}"] = ledger.close(ignored)
