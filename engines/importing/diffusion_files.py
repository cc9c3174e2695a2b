"""Stages from sgm's SDXL checkpoints: the unCLIP, its autoencoder and embedder, and the refinement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from engines.importing import interfaces
from engines.importing.drafts import Draft, DraftStage
from engines.importing.keys import Ledger, count, rename_attention, shape_of
from engines.importing.lora_files import UNCLIP, LoraOrder, fuse, sgm_modules, unclip_table
from rtdecode.decode.networks.embedder import TowerShape
from rtdecode.decode.networks.prompt import BIGG_CONFIG, CLIP_L_CONFIG
from rtdecode.decode.networks.unclip import SD_SCALE, SDXL_SCALE, autoencoder_config, unclip_config
from rtdecode.errors import CheckpointError

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
_TOWER = "conditioner.embedders.0.model."
_CLIP_L = "conditioner.embedders.0.transformer.text_model."
_BIGG = "conditioner.embedders.1.model."
_BIGG_HEAD_CHANNELS = 104
_TEXT_HEAD_CHANNELS = 64
LATENT_SIDE = 96
_LIGHTNING = (
    "epoch|global_step|pytorch-lightning_version|loops|callbacks|optimizer_states|lr_schedulers|hparams_name|"
    "hyper_parameters|hparams_type|MixedPrecision|NativeMixedPrecisionPlugin|datamodule.*"
)


def weights_of(ledger: Ledger, content: Mapping[str, Any]) -> Ledger:
    """Ledger of the state dict of an sgm checkpoint, be it bare or inside a training state."""
    if "state_dict" not in content:
        return ledger
    inner = Ledger(ledger.source, ledger.one("state_dict"))
    ledger.drop(_LIGHTNING, "state of the training")
    return inner


def add_unclip(
    draft: Draft,
    ledger: Ledger,
    *,
    latent_side: int = LATENT_SIDE,
    lora: LoraOrder | None = None,
    ignored: Sequence[str] = (),
) -> None:
    """Add ``unclip``, ``autoencoder`` and ``embedder`` from the keys of an unCLIP checkpoint.

    A few-step LoRA is fused into the first, its sampler noted in `draft`.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape.
    """
    _add_denoiser(draft, "unclip", ledger, latent_side, lora, ignored)
    _add_autoencoder(draft, "autoencoder", ledger, latent_side)
    tower = ledger.take(f"{_TOWER}visual.")
    if tower:
        sizes = _tower_sizes(ledger.source, tower)
        state = {f"visual.{key}": value for key, value in tower.items()}
        stage = DraftStage(
            kind="embedder",
            sizes=sizes,
            interface=interfaces.embedder(sizes),
            state=state,
            source=ledger.source,
        )
        draft.add("embedder", stage)
    text = r"positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\..*|transformer\..*"
    ledger.drop(re.escape(_TOWER) + f"({text}|attn_mask)", "text side of the embedder, which sees pictures only")
    ledger.drop(r"denoiser\.sigmas", "computed anew")


def add_refiner(draft: Draft, ledger: Ledger, *, latent_side: int = LATENT_SIDE) -> None:
    """Add ``refiner``, ``refiner_autoencoder`` and ``prompt`` from the keys of an SDXL checkpoint.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape.
    """
    _add_denoiser(draft, "refiner", ledger, latent_side)
    _add_autoencoder(draft, "refiner_autoencoder", ledger, latent_side)
    ledger.drop(re.escape(_CLIP_L) + r"embeddings\.position_ids", "counts up from 0")
    ledger.drop(re.escape(_BIGG) + "(logit_scale|attn_mask)", "of contrastive training only")
    ledger.drop(r"denoiser\.sigmas", "computed anew")
    first, second = ledger.take(_CLIP_L), ledger.take(_BIGG)
    sizes = {"clip_l": _clip_l_sizes(ledger.source, first), "bigg": _bigg_sizes(ledger.source, second)}
    state = {f"clip_l.{key}": value for key, value in first.items()}
    state |= {f"bigg.{key}": value for key, value in second.items()}
    stage = DraftStage(
        kind="prompt",
        sizes=sizes,
        interface=interfaces.prompt(sizes),
        state=state,
        source=ledger.source,
    )
    draft.add("prompt", stage)


def add_small_autoencoder(draft: Draft, ledger: Ledger, *, latent_side: int = LATENT_SIDE) -> None:
    """Add ``small_autoencoder`` from the keys of diffusers' AutoencoderTiny (TAESDXL).

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape.
    """
    ledger.drop(r"encoder\..*", "pictures are decoded only")
    state = ledger.take("")
    sizes = {"channels": shape_of(ledger.source, state, "decoder.layers.0.weight")[0], "blocks": [3, 3, 3, 1]}
    stage = DraftStage(
        kind="small_autoencoder",
        sizes=sizes,
        interface=interfaces.small_autoencoder(latent_side, sizes),
        state=state,
        source=ledger.source,
    )
    draft.add("small_autoencoder", stage)


def add_blurry_autoencoder(draft: Draft, ledger: Ledger, *, latent_side: int) -> None:
    """Add ``blurry_autoencoder``, Stable Diffusion's autoencoder in diffusers' names, old or new.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape.
    """
    state = rename_attention(ledger.take(""))
    levels = count(state, "encoder.down_blocks.")
    channels = [
        shape_of(ledger.source, state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0]
        for i in range(max(levels, 1))
    ]
    sizes = autoencoder_config(channels, SD_SCALE)
    stage = DraftStage(
        kind="autoencoder",
        sizes=sizes,
        interface=interfaces.autoencoder(latent_side, sizes),
        state={f"vae.{key}": value for key, value in state.items()},
        source=ledger.source,
    )
    draft.add("blurry_autoencoder", stage)


def _add_denoiser(
    draft: Draft,
    name: str,
    ledger: Ledger,
    side: int,
    lora: LoraOrder | None = None,
    ignored: Sequence[str] = (),
) -> None:
    state = ledger.take(UNET)
    sizes = _unet_sizes(ledger.source, state, side)
    converted = _convert(ledger.source, UNET, state, lambda keys: convert_ldm_unet_checkpoint(keys, sizes))
    if lora is not None:
        fused = fuse(lora, UNCLIP, converted, sgm_modules(state, converted), list(ignored))
        converted = fused.state
        draft.dropped[fused.source] = fused.dropped
        draft.tables["unclip_lora"] = unclip_table(fused)
    stage = DraftStage(
        kind="denoiser",
        sizes=sizes,
        interface=interfaces.denoiser(sizes),
        state={f"unet.{key}": value for key, value in converted.items()},
        source=ledger.source,
    )
    draft.add(name, stage)


def _add_autoencoder(draft: Draft, name: str, ledger: Ledger, side: int) -> None:
    state = ledger.take(AUTOENCODER)
    levels = count(state, "encoder.down.")
    channels = [
        shape_of(f"{ledger.source}: {AUTOENCODER}*", state, f"encoder.down.{i}.block.0.conv1.weight")[0]
        for i in range(max(levels, 1))
    ]
    sizes = autoencoder_config(channels, SDXL_SCALE)
    converted = _convert(ledger.source, AUTOENCODER, state, lambda keys: convert_ldm_vae_checkpoint(keys, sizes))
    stage = DraftStage(
        kind="autoencoder",
        sizes=sizes,
        interface=interfaces.autoencoder(side, sizes),
        state={f"vae.{key}": value for key, value in converted.items()},
        source=ledger.source,
    )
    draft.add(name, stage)


def _convert(
    source: str,
    prefix: str,
    state: Mapping[str, Tensor],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Rename through diffusers' converter, which passes over keys that it does not know."""
    try:
        converted = convert({prefix + key: value for key, value in state.items()})
    except KeyError as error:
        raise CheckpointError(f"{source}: missing {prefix}{error.args[0]}") from None
    kept = {value.data_ptr() for value in converted.values()}
    lost = [prefix + key for key, value in state.items() if value.data_ptr() not in kept]
    if lost:
        raise CheckpointError(f"{source}: unexpected {', '.join(sorted(lost)[:8])}")
    return converted


def _unet_sizes(source: str, state: Mapping[str, Tensor], side: int) -> dict[str, Any]:
    """Sizes of a UNet of SDXL's kind, two residual blocks a resolution, from the shapes of its weights."""
    where = f"{source}: {UNET}*"
    levels = max(count(state, "input_blocks.") // 3, 1)
    first = [f"input_blocks.{1 + 3 * level}" for level in range(levels)]
    keys = [key for key in state if key.endswith("attn2.to_k.weight")]
    if not keys:
        raise CheckpointError(f"{where}: missing every attn2.to_k.weight; is it a file of another model?")
    return unclip_config(
        channels=[shape_of(where, state, f"{block}.0.out_layers.3.weight")[0] for block in first],
        depth=[max(count(state, f"{block}.1.transformer_blocks."), 1) for block in first],
        context=state[keys[0]].shape[1],
        vector=shape_of(where, state, "label_emb.0.0.weight")[1],
        side=side,
    )


def _tower_sizes(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    where = f"{source}: {_TOWER}visual.*"
    width, _, patch, _ = shape_of(where, state, "conv1.weight")
    grid = round((shape_of(where, state, "positional_embedding")[0] - 1) ** 0.5)
    shape = TowerShape(
        px=grid * patch,
        patch=patch,
        width=width,
        layers=count(state, "transformer.resblocks."),
        heads=width // _BIGG_HEAD_CHANNELS,
        hidden=shape_of(where, state, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        out=shape_of(where, state, "proj")[1],
    )
    return asdict(shape)


def _clip_l_sizes(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    where = f"{source}: {_CLIP_L}*"
    words, width = shape_of(where, state, "embeddings.token_embedding.weight")
    return CLIP_L_CONFIG | {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shape_of(where, state, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count(state, "encoder.layers."),
        "num_attention_heads": width // _TEXT_HEAD_CHANNELS,
        "max_position_embeddings": shape_of(where, state, "embeddings.position_embedding.weight")[0],
        "projection_dim": width,
    }


def _bigg_sizes(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    where = f"{source}: {_BIGG}*"
    words, width = shape_of(where, state, "token_embedding.weight")
    return BIGG_CONFIG | {
        "width": width,
        "heads": width // _TEXT_HEAD_CHANNELS,
        "layers": count(state, "transformer.resblocks."),
        "output_dim": shape_of(where, state, "text_projection")[1],
        "vocab_size": words,
    }


def close_all(ledgers: Iterable[Ledger], ignored: list[str]) -> dict[str, list[str]]:
    """Close the ledgers of one file, of which some may be the same; returns reasons and the keys dropped for each."""
    dropped: dict[str, list[str]] = {}
    for ledger in dict.fromkeys(ledgers):
        for reason, keys in ledger.close(ignored).items():
            dropped.setdefault(reason, []).extend(keys)
    return dropped
