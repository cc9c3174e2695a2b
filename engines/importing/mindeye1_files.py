"""MindEye1's published files to an engine pack of its own kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engines.importing import interfaces
from engines.importing.diffusion_files import add_blurry_autoencoder, close_all
from engines.importing.drafts import Draft, DraftStage
from engines.importing.image_variation_files import add_picture_generator
from engines.importing.keys import Ledger, count, rename_attention, shape_of
from engines.importing.lora_files import LoraOrder
from engines.importing.mindeye2_files import add_prior, check_layout, open_ledger
from engines.importing.weight_files import locate, read
from rtdecode.decode.networks.brain import BrainShape
from rtdecode.errors import CheckpointError

BLURRY_SIDE = 64
_TRAINING = "epoch|optimizer_state_dict|lr_scheduler|train_losses|test_losses|val_losses|lrs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MindEye1Files:
    """Paths or hub names of the files; what is None becomes an absent stage.

    Attributes
    ----------
    weights : str
        ``last.pth`` of the high-level model: brain network and prior.
    low_level : str, optional
        Checkpoint of the low-level model.
    blurry_autoencoder : str, optional
        ``sd_image_var_autoenc.pth``.
    generator : str, optional
        Folder of Versatile Diffusion, or of SD Image Variations for the variant of one token.
    generator_lora : LoraOrder, optional
        A few-step LoRA of Stable Diffusion 1, to fuse into the generator.
    scaling : str, optional
        Safetensors file with ``mean`` and ``scale`` (voxels,) of the betas that the network was trained on, percent
        signal change: what puts the network into a bundle needs it.
    """

    weights: str
    low_level: str | None = None
    blurry_autoencoder: str | None = None
    generator: str | None = None
    generator_lora: LoraOrder | None = None
    scaling: str | None = None


def draft_mindeye1(
    sources: MindEye1Files, *, generator: Mapping[str, Any] | None = None, ignored: Sequence[str] = ()
) -> Draft:
    """Read MindEye1's files; as `draft_mindeye2`.

    Parameters
    ----------
    sources : MindEye1Files
    generator : mapping, optional
        What is to be other than published in drawing; see `GeneratorTable`.
    ignored : sequence of str
        As of `draft_mindeye2`.

    Raises
    ------
    CheckpointError
        A file is not to be had or cannot be read, or a key is missing, unexpected or of another shape.
    """
    if sources.generator_lora is not None and sources.generator is None:
        raise CheckpointError(f"{sources.generator_lora.name}: expected --generator, the network that it is fused into")
    draft = Draft(kind="mindeye1")
    ignored = list(ignored)
    path, _, ledger = open_ledger(sources.weights)
    inner = Ledger(path.name, ledger.one("model_state_dict"))
    ledger.drop(_TRAINING, "state of the training")
    _add_brain(draft, inner)
    add_prior(draft, inner, "net.", "noise_scheduler.")
    draft.dropped[path.name] = close_all((ledger, inner), ignored)
    if sources.low_level is not None:
        path, content, ledger = open_ledger(sources.low_level)
        inner = ledger
        if "model_state_dict" in content:
            inner = Ledger(path.name, ledger.one("model_state_dict"))
            ledger.drop(_TRAINING, "state of the training")
        _add_low_level(draft, inner)
        draft.dropped[path.name] = close_all((ledger, inner), ignored)
    if sources.blurry_autoencoder is not None:
        path, _, ledger = open_ledger(sources.blurry_autoencoder)
        add_blurry_autoencoder(draft, ledger, latent_side=BLURRY_SIDE)
        draft.dropped[path.name] = close_all((ledger,), ignored)
    if sources.generator is not None:
        table = add_picture_generator(draft, sources.generator, ignored, lora=sources.generator_lora)
        draft.tables["generator"] = {**table, **(generator or {})}
    check_layout(draft, "brain", ("prior",))
    if sources.scaling is not None:
        add_scaling(draft, locate(sources.scaling))
    return draft


def add_scaling(draft: Draft, path: Path) -> None:
    """Add mean and scale of the betas that the brain network takes.

    Raises
    ------
    CheckpointError
        The file holds something else.
    """
    content, voxels = read(path), draft.stages["brain"].sizes["voxels"]
    for name in ("mean", "scale"):
        if not isinstance(content.get(name), Tensor) or tuple(content[name].shape) != (voxels,):
            raise CheckpointError(f"{path}: expected a tensor {name} ({voxels},) of the network's voxels")
    if not bool((content["scale"] > 0).all()):
        raise CheckpointError(f"{path}: scale: expected values above 0")
    draft.tensors["scaling"] = {name: content[name] for name in ("mean", "scale")}
    draft.tables["scaling"] = "scaling.safetensors"


def _add_brain(draft: Draft, ledger: Ledger) -> None:
    state = ledger.take("voxel2clip.")
    hidden, voxels = shape_of(ledger.source, state, "lin0.0.weight")
    dim = shape_of(ledger.source, state, "projector.8.weight")[0]
    shape = BrainShape(
        voxels=voxels,
        hidden=hidden,
        tokens=shape_of(ledger.source, state, "lin1.weight")[0] // dim,
        dim=dim,
        projector=shape_of(ledger.source, state, "projector.2.weight")[0],
        blocks=count(state, "mlp."),
    )
    sizes = asdict(shape)
    stage = DraftStage(kind="brain", sizes=sizes, interface=interfaces.brain(sizes), state=state, source=ledger.source)
    draft.add("brain", stage)


def _add_low_level(draft: Draft, ledger: Ledger) -> None:
    state = rename_attention(ledger.take(""))
    hidden, voxels = shape_of(ledger.source, state, "lin0.0.weight")
    aligned = any(key.startswith("maps_projector.") for key in state)
    sizes = {"voxels": voxels, "hidden": hidden, "blocks": count(state, "mlp."), "aligned": aligned}
    stage = DraftStage(
        kind="low_level",
        sizes=sizes,
        interface=interfaces.low_level(sizes),
        state=state,
        source=ledger.source,
    )
    draft.add("low_level", stage)
