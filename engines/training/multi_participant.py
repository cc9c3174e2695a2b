"""Train MindEye2 on several participants as a settings file says (torch). Import inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from engines.importing import interfaces
from engines.importing.drafts import Draft, DraftStage, Interface
from engines.importing.mindeye2_files import check_layout
from engines.training.agreement import agreed
from engines.training.loop import Fitted, Plan, fit, make_accelerator
from engines.training.objective import MindEye2Objective, Weights
from engines.training.rows import FileRows
from engines.training.shared_model import SharedModel, Trials
from engines.training.state import Ema
from rtdecode.decode.networks.backbone import BackboneShape, fold_mixers
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.packs.sealed import check_target

_Size = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of backbone and prior; the defaults are the published ones. Tokens come from the pictures.

    Attributes
    ----------
    hidden, blocks : int
    low_level : bool
        Needs ``latent``, ``teacher`` and ``teacher_augmented`` of the pictures.
    prior_depth, prior_heads, prior_dim_head, timesteps : int
    """

    hidden: _Size = 4096
    blocks: int = 4
    low_level: bool = True
    prior_depth: _Size = 6
    prior_heads: _Size = 32
    prior_dim_head: _Size = 52
    timesteps: _Size = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Content of the settings file; paths are relative to it.

    Attributes
    ----------
    pictures : Path
        A safetensors file with ``tokens`` (p, t, d) and, for the low-level branch, ``latent`` (p, 4, 28, 28),
        ``teacher`` and ``teacher_augmented`` (p, 49, 512).
    participants : list of Path
        Safetensors files with ``betas`` (n, voxels), standardised, and ``picture`` (n,), rows of `pictures`.
    steps : int
    batch : int
        Trials of each participant in a batch and process.
    rate : float
    ema : float
    seed : int
    half : bool
        Ridge and backbone in bfloat16.
    model : ModelSizes
    weights : Weights
    """

    pictures: str
    participants: list[str]
    steps: _Size
    batch: Annotated[int, Meta(ge=2)] = 24
    rate: Annotated[float, Meta(gt=0)] = 3e-4
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    seed: int = 0
    half: bool = False
    model: ModelSizes = field(default_factory=ModelSizes)
    weights: Weights = field(default_factory=Weights)


def train_from(settings_path: Path, out: Path, *, licence: str, resume: bool) -> tuple[str, Fitted]:
    """Train as a settings file says and seal the averaged weights as a pack.

    Returns its identity, empty in processes other than the first.

    Raises
    ------
    TrainingError
        The settings or a file of data cannot be used. Processes other than the first end; see `agreed`.
    BundleError
        The pack cannot be put where it is wanted.
    """
    accelerator = make_accelerator()
    with agreed(accelerator):
        check_target(out)
        settings = _read(settings_path)
        pictures, people = _tables(settings, settings_path.parent)
    torch.manual_seed(settings.seed)
    model = _model(settings, pictures, people)
    ema = Ema(model, settings.ema)
    fitted = fit(
        MindEye2Objective(
            model,
            cosine_schedule(settings.model.timesteps),
            settings.weights,
            torch.bfloat16 if settings.half else None,
        ),
        _batches(settings, pictures, people),
        Plan(
            name="shared",
            steps=settings.steps,
            rate=settings.rate,
            seed=settings.seed,
            details={name: value for name, value in asdict(settings).items() if name not in ("steps", "rate", "seed")},
        ),
        folder=out.parent / f"{out.name}-checkpoints",
        resume=resume,
        ema=ema,
        accelerator=accelerator,
    )
    average = ema.module
    assert isinstance(average, SharedModel)
    identity = _seal(average, out, licence) if accelerator.is_main_process else ""
    return identity, fitted


def _read(path: Path) -> TrainingSettings:
    try:
        settings = msgspec.toml.decode(path.read_bytes(), type=TrainingSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise TrainingError(f"{path}: {error}") from None
    if not settings.participants:
        raise TrainingError(f"{path}: participants: expected at least one file")
    return settings


def _tables(settings: TrainingSettings, folder: Path) -> tuple[FileRows, list[FileRows]]:
    columns = {"tokens": 3}
    if settings.model.low_level:
        columns |= {"latent": 4, "teacher": 3, "teacher_augmented": 3}
    pictures = FileRows(folder / settings.pictures, columns)
    people = [FileRows(folder / path, {"betas": 2, "picture": 1}) for path in settings.participants]
    for table in people:
        table.refer("picture", pictures)
    return pictures, people


def _model(settings: TrainingSettings, pictures: FileRows, people: list[FileRows]) -> SharedModel:
    sizes = settings.model
    tokens, dim = pictures.shape("tokens")
    shape = BackboneShape(hidden=sizes.hidden, tokens=tokens, dim=dim, blocks=sizes.blocks, low_level=sizes.low_level)
    prior = PriorShape(
        tokens=tokens,
        dim=dim,
        depth=sizes.prior_depth,
        heads=sizes.prior_heads,
        dim_head=sizes.prior_dim_head,
        timesteps=sizes.timesteps,
    )
    return SharedModel([table.shape("betas")[0] for table in people], shape, PriorNetwork(prior))


def _batches(
    settings: TrainingSettings, pictures: FileRows, people: list[FileRows]
) -> Callable[[torch.Generator], list[Trials]]:
    low = settings.model.low_level

    def draw_batch(draw: torch.Generator) -> list[Trials]:
        batch = []
        for number, table in enumerate(people):
            at = torch.randint(len(table), (settings.batch,), generator=draw)
            rows = table.rows("picture", at)
            batch.append(
                Trials(
                    participant=number,
                    betas=table.rows("betas", at),
                    tokens=pictures.rows("tokens", rows),
                    latent=pictures.rows("latent", rows) if low else None,
                    teacher=pictures.rows("teacher", rows) if low else None,
                    teacher_augmented=pictures.rows("teacher_augmented", rows) if low else None,
                    rows=rows,
                )
            )
        return batch

    return draw_batch


def _seal(model: SharedModel, out: Path, licence: str) -> str:
    """Seal ridge, folded backbone and prior as `engines import` does."""
    draft = Draft(kind="mindeye2")
    shape = replace(model.backbone.shape, blocks=0)
    prior = model.diffusion_prior["net"]
    voxels = [layer.in_features for layer in model.ridge.linears]
    parts: list[tuple[str, dict[str, Any], Callable[[dict[str, Any]], Interface], dict[str, Tensor]]] = [
        ("ridge", {"voxels": voxels, "hidden": shape.hidden}, interfaces.ridge, model.ridge.state_dict()),
        ("backbone", asdict(shape), interfaces.backbone, fold_mixers(model.backbone.state_dict())),
        ("prior", asdict(prior.shape), interfaces.prior, prior.state_dict()),
    ]
    for name, sizes, interface, state in parts:
        owned = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        draft.add(name, DraftStage(kind=name, sizes=sizes, interface=interface(sizes), state=owned, source="training"))
    draft.tables["participants"] = list(range(len(voxels)))
    check_layout(draft, "backbone", ("prior",))
    return draft.seal(out, name=out.name, licence=licence, precision="float32")
