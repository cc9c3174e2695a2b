"""MindEye2's published files to an engine pack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engines.importing import interfaces
from engines.importing.diffusion_files import (
    add_blurry_autoencoder,
    add_refiner,
    add_small_autoencoder,
    add_unclip,
    close_all,
    weights_of,
)
from engines.importing.drafts import Draft, DraftStage
from engines.importing.keys import Ledger, count, fit, shape_of
from engines.importing.lora_files import LoraOrder
from engines.importing.weight_files import locate, read
from rtdecode.decode.networks.backbone import BackboneShape, fold_mixers
from rtdecode.decode.networks.build import empty
from rtdecode.decode.networks.prior import PriorShape
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import CheckpointError

BLURRY_SIDE = 28
_SCHEDULE_TOLERANCE = 1e-5
_TRAINING = "epoch|optimizer_state_dict|lr_scheduler|train_losses|test_losses|val_losses|lrs"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MindEye2Files:
    """Paths or hub names of the files; only the weights are needed, what is None becomes an absent stage.

    Attributes
    ----------
    weights : str
        ``last.pth`` of a model: ridge, backbone and prior.
    converter, captioner : str, optional
        ``bigG_to_L_epoch8.pth`` and the folder of GIT.
    unclip, blurry_autoencoder, refiner : str, optional
        ``unclip6_epoch0_step110000.ckpt``, ``sd_image_var_autoenc.pth``, and an SDXL checkpoint.
    unclip_lora : LoraOrder, optional
        A few-step LoRA of SDXL, to fuse into the unCLIP.
    small_autoencoder : str, optional
        TAESDXL's ``diffusion_pytorch_model.safetensors``, to decode pictures with instead of the unCLIP's own.
    """

    weights: str
    converter: str | None = None
    captioner: str | None = None
    unclip: str | None = None
    blurry_autoencoder: str | None = None
    refiner: str | None = None
    small_autoencoder: str | None = None
    unclip_lora: LoraOrder | None = None


def draft_mindeye2(
    sources: MindEye2Files, *, participants: Sequence[int] | None = None, ignored: Sequence[str] = ()
) -> Draft:
    """Read MindEye2's files.

    Parameters
    ----------
    sources : MindEye2Files
    participants : sequence of int, optional
        Which ridge layers to keep, by their number in the checkpoint; None keeps all.
    ignored : sequence of str
        Regular expressions of unexpected keys to leave out.

    Returns
    -------
    Draft
        With every key either in a stage or in `Draft.dropped`.

    Raises
    ------
    CheckpointError
        A file is not to be had or cannot be read, or a key is missing, unexpected or of another shape.
    """
    if sources.unclip_lora is not None and sources.unclip is None:
        raise CheckpointError(f"{sources.unclip_lora.name}: expected --unclip, the network that it is fused into")
    draft = Draft(kind="mindeye2")
    ignored = list(ignored)
    path, _, ledger = open_ledger(sources.weights)
    inner = Ledger(path.name, ledger.one("model_state_dict"))
    ledger.drop(_TRAINING, "state of the training")
    _add_ridge(draft, inner, participants)
    _add_backbone(draft, inner)
    add_prior(draft, inner, "diffusion_prior.net.", "diffusion_prior.noise_scheduler.")
    draft.dropped[path.name] = close_all((ledger, inner), ignored)
    if sources.converter is not None:
        path, _, ledger = open_ledger(sources.converter)
        inner = Ledger(path.name, ledger.one("model_state_dict"))
        ledger.drop(_TRAINING, "state of the training")
        _add_converter(draft, inner)
        draft.dropped[path.name] = close_all((ledger, inner), ignored)
    if sources.captioner is not None:
        folder = locate(sources.captioner)
        draft.dropped[folder.name] = add_captioner(draft, folder, ignored)
    if sources.blurry_autoencoder is not None:
        path, _, ledger = open_ledger(sources.blurry_autoencoder)
        add_blurry_autoencoder(draft, ledger, latent_side=BLURRY_SIDE)
        draft.dropped[path.name] = close_all((ledger,), ignored)
    if sources.small_autoencoder is not None:
        path, _, ledger = open_ledger(sources.small_autoencoder)
        add_small_autoencoder(draft, ledger)
        draft.dropped[path.name] = close_all((ledger,), ignored)
    unclip = partial(add_unclip, lora=sources.unclip_lora, ignored=ignored)
    for name, add in ((sources.unclip, unclip), (sources.refiner, add_refiner)):
        if name is not None:
            path, content, ledger = open_ledger(name)
            inner = weights_of(ledger, content)
            add(draft, inner)
            draft.dropped[path.name] = close_all((ledger, inner), ignored)
    check_layout(draft, "backbone", ("prior", "converter"))
    return draft


def check_layout(draft: Draft, first: str, others: Sequence[str]) -> None:
    """Note the token layout that a stage gives, and check that the others take it.

    Raises
    ------
    CheckpointError
        The files are of different models.
    """
    given = draft.stages[first].sizes
    for name in (name for name in others if name in draft.stages):
        taken = draft.stages[name].sizes
        if (taken["tokens"], taken["dim"]) != (given["tokens"], given["dim"]):
            raise CheckpointError(
                f"{first} gives {given['tokens']} x {given['dim']} tokens, {name} takes {taken['tokens']} x "
                f"{taken['dim']}: the files are of different models"
            )
    draft.tables["tokens"] = {"count": given["tokens"], "channels": given["dim"]}


def open_ledger(name: str) -> tuple[Path, dict[str, Any], Ledger]:
    """Path, content and ledger of a file, or of a folder of shards."""
    path = locate(name)
    content = read(path)
    ledger = Ledger(path.name, content)
    if path.is_dir():
        ledger.drop("(?!model_state_dict$).*", "state of the training")
    return path, content, ledger


def add_prior(draft: Draft, ledger: Ledger, network: str, schedule: str) -> None:
    """Add ``prior`` from the keys below the prefix `network`; the tables below `schedule` are checked, not kept.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape, or the tables are not those of the cosine schedule.
    """
    state, tables = ledger.take(network), ledger.take(schedule)
    timesteps = _check_schedule(ledger.source, schedule, tables)
    ledger.note((schedule + key for key in tables), "computed anew, and equal")
    tokens, dim = shape_of(ledger.source, state, "learned_query")
    shape = PriorShape(
        tokens=tokens,
        dim=dim,
        depth=count(state, "causal_transformer.layers."),
        heads=shape_of(ledger.source, state, "causal_transformer.rel_pos_bias.relative_attention_bias.weight")[1],
        dim_head=shape_of(ledger.source, state, "causal_transformer.layers.0.0.null_kv")[1],
        timesteps=timesteps,
    )
    sizes = asdict(shape)
    stage = DraftStage(
        kind="prior",
        sizes=sizes,
        interface=interfaces.prior(sizes),
        state=state,
        source=ledger.source,
    )
    draft.add("prior", stage)


def _add_ridge(draft: Draft, ledger: Ledger, participants: Sequence[int] | None) -> None:
    state = ledger.take("ridge.")
    known = range(count(state, "linears."))
    if not known:
        ledger.one("ridge.linears.0.weight")
    kept = list(known) if participants is None else list(participants)
    if not kept or not set(kept) <= set(known):
        raise CheckpointError(f"{ledger.source}: expected participants from 0 to {len(known) - 1}, got {kept}")
    others = [key for key in state if int(key.split(".")[1]) not in kept]
    chosen: dict[str, Tensor] = {}
    for place, number in enumerate(kept):
        for part in ("weight", "bias"):
            shape_of(ledger.source, state, f"linears.{number}.{part}")
            chosen[f"linears.{place}.{part}"] = state.pop(f"linears.{number}.{part}")
    # A surplus key of a chosen participant stays with its name, and the stage refuses it.
    chosen |= {key: value for key, value in state.items() if key not in others}
    ledger.note((f"ridge.{key}" for key in others), "of participants not chosen")
    sizes = {
        "voxels": [chosen[f"linears.{i}.weight"].shape[1] for i in range(len(kept))],
        "hidden": chosen["linears.0.weight"].shape[0],
    }
    stage = DraftStage(kind="ridge", sizes=sizes, interface=interfaces.ridge(sizes), state=chosen, source=ledger.source)
    draft.add("ridge", stage)
    draft.tables["participants"] = kept


def _add_backbone(draft: Draft, ledger: Ledger) -> None:
    state = ledger.take("backbone.")
    rows, hidden = shape_of(ledger.source, state, "backbone_linear.weight")
    dim = shape_of(ledger.source, state, "clip_proj.8.weight")[0]
    shape = BackboneShape(
        hidden=hidden,
        tokens=rows // dim,
        dim=dim,
        blocks=count(state, "mixer_blocks1."),
        low_level="blin1.weight" in state,
    )
    fit(ledger.source, "backbone", empty("backbone", asdict(shape)), state)
    folded = fold_mixers(state)
    ledger.note(
        (f"backbone.{key}" for key in state.keys() - folded.keys()),
        "mixer blocks cannot reach the output; the constants that they add are in the biases behind them",
    )
    sizes = asdict(replace(shape, blocks=0))
    stage = DraftStage(
        kind="backbone",
        sizes=sizes,
        interface=interfaces.backbone(sizes),
        state=folded,
        source=ledger.source,
    )
    draft.add("backbone", stage)


def _check_schedule(source: str, prefix: str, tables: Mapping[str, Tensor]) -> int:
    timesteps = shape_of(source, {prefix + key: value for key, value in tables.items()}, f"{prefix}betas")[0]
    expected = cosine_schedule(timesteps).tables()
    if wrong := sorted(set(expected) ^ set(tables)):
        what = "missing" if wrong[0] in expected else "unexpected"
        raise CheckpointError(f"{source}: {what} {', '.join(prefix + key for key in wrong)}")
    for key, table in expected.items():
        if not np.allclose(tables[key].numpy(), table, rtol=_SCHEDULE_TOLERANCE, atol=_SCHEDULE_TOLERANCE):
            raise CheckpointError(
                f"{source}: {prefix}{key} is not the cosine schedule of {timesteps} steps that the decoder samples with"
            )
    return timesteps


def _add_converter(draft: Draft, ledger: Ledger) -> None:
    state = ledger.take("")
    out_tokens, tokens = shape_of(ledger.source, state, "linear1.weight")
    out_dim, dim = shape_of(ledger.source, state, "linear2.weight")
    sizes = {"tokens": tokens, "dim": dim, "out_tokens": out_tokens, "out_dim": out_dim}
    stage = DraftStage(
        kind="converter",
        sizes=sizes,
        interface=interfaces.converter(sizes),
        state=state,
        source=ledger.source,
    )
    draft.add("converter", stage)


def add_captioner(draft: Draft, folder: Path, ignored: list[str]) -> dict[str, list[str]]:
    """Add ``captioner`` from a folder of GIT; returns reasons, and the keys dropped for each.

    Raises
    ------
    CheckpointError
        A file is missing, or a key is missing, unexpected or of another shape.
    """
    weights = next((folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected config.json and model.safetensors or pytorch_model.bin of GIT")
    tokenizer = folder / _TOKENIZER
    if not tokenizer.is_file():
        raise CheckpointError(f"{tokenizer}: expected the words that GIT's numbers stand for, found no such file")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = f"{folder.name}/{weights.name}"
    ledger = Ledger(source, read(weights))
    ledger.drop(r"git\.image_encoder\..*", "the decoder gives what the image encoder would")
    ledger.drop(r".*position_ids", "counts up from 0")
    vision = sizes["vision_config"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    stage = DraftStage(
        kind="captioner",
        sizes=sizes,
        interface=interfaces.captioner(tokens, sizes),
        state=ledger.take(""),
        source=source,
        files=[tokenizer],
    )
    draft.add("captioner", stage)
    return ledger.close(ignored)
