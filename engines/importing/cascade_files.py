"""Stages of Stable Cascade, its picture encoder and the very deep VAE from their published files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_stable_cascade_unet_single_file_to_diffusers
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from torch import Tensor

from engines.importing import interfaces
from engines.importing.configs import config_of
from engines.importing.drafts import Draft, DraftStage, Interface
from engines.importing.keys import Ledger, shape_of
from engines.importing.weight_files import locate, read
from rtdecode.decode.networks.cascade import STAGE_A, STAGE_B, STAGE_C
from rtdecode.decode.networks.vdvae import VdvaeShape

TEXT_TOKENS = 77
_BATCHES = r".*\.num_batches_tracked", "counts batches of the training"


def add_stage_c(draft: Draft, name: str, ignored: list[str], *, side: int = 24, text: int = TEXT_TOKENS) -> None:
    """Add ``stage_c`` from Stability's file; its latent is `side` values high and wide.

    Raises
    ------
    CheckpointError
        The file is not to be had, or a key is missing, unexpected or of another shape.
    """
    path, sizes = _sizes(name, STAGE_C, StableCascadeUNet)
    _add(draft, "stage_c", path, sizes, interfaces.stage_c(side, text, sizes), ignored, prefix="unet.")


def add_stage_b(draft: Draft, name: str, ignored: list[str], *, side: int = 256, coarse: int = 24) -> None:
    """Add ``stage_b`` from Stability's file; as `add_stage_c`."""
    path, sizes = _sizes(name, STAGE_B, StableCascadeUNet)
    _add(draft, "stage_b", path, sizes, interfaces.stage_b(side, coarse, sizes), ignored, prefix="unet.")


def add_stage_a(draft: Draft, name: str, ignored: list[str], *, side: int = 256) -> None:
    """Add ``stage_a`` from Stability's file; as `add_stage_c`."""
    path, sizes = _sizes(name, STAGE_A, PaellaVQModel)
    sizes.setdefault("scale_factor", STAGE_A["scale_factor"])
    _add(draft, "stage_a", path, sizes, interfaces.stage_a(side, sizes), ignored, prefix="vqgan.")


def add_effnet(draft: Draft, name: str, ignored: list[str], *, side: int = 24) -> None:
    """Add ``effnet`` from Stability's file; as `add_stage_c`."""
    path = locate(name)
    ledger = Ledger(path.name, read(path))
    ledger.drop(*_BATCHES)
    state = ledger.take("")
    sizes = {"channels": shape_of(ledger.source, state, "mapper.0.weight")[0]}
    stage = DraftStage(
        kind="effnet", sizes=sizes, interface=interfaces.effnet(side, sizes), state=state, source=ledger.source
    )
    draft.add("effnet", stage)
    draft.dropped[path.name] = ledger.close(ignored)


def add_vdvae(draft: Draft, name: str, ignored: list[str]) -> None:
    """Add ``vdvae`` from the checkpoint of averaged weights; raises as `add_stage_c`."""
    path = locate(name)
    sizes = config_of(path, asdict(VdvaeShape()))
    shape = VdvaeShape(**sizes)
    ledger = Ledger(path.name, read(path))  # which takes ``module.`` off
    stage = DraftStage(
        kind="vdvae",
        sizes=sizes,
        interface=interfaces.vdvae(shape.given_size, shape.drawn_size, sizes),
        state=ledger.take(""),
        source=ledger.source,
    )
    draft.add("vdvae", stage)
    draft.dropped[path.name] = ledger.close(ignored)


def _sizes(name: str, published: Mapping[str, Any], network: type[Any]) -> tuple[Path, dict[str, Any]]:
    path = locate(name)
    return path, config_of(path, published, network)


def _add(
    draft: Draft,
    stage: str,
    path: Path,
    sizes: dict[str, Any],
    interface: Interface,
    ignored: list[str],
    *,
    prefix: str,
) -> None:
    ledger = Ledger(path.name, read(path))
    ledger.drop(*_BATCHES)
    state: dict[str, Tensor] = ledger.take("")
    if stage == "stage_a":
        state = {key.replace("vquantizer.codebook.", "vquantizer.embedding."): value for key, value in state.items()}
    else:
        state = convert_stable_cascade_unet_single_file_to_diffusers(state)
    made = DraftStage(
        kind=stage,
        sizes=sizes,
        interface=interface,
        state={f"{prefix}{key}": value.contiguous() for key, value in state.items()},
        source=ledger.source,
    )
    draft.add(stage, made)
    draft.dropped[path.name] = ledger.close(ignored)
