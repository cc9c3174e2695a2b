"""Train MindEye1's networks of one participant as a settings file says (torch). Import inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from accelerate import Accelerator
from msgspec import Meta
from torch import nn

from engines.importing import interfaces
from engines.importing.drafts import Draft, DraftStage, Interface
from engines.importing.mindeye1_files import add_scaling
from engines.importing.mindeye2_files import check_layout
from engines.training.agreement import agreed
from engines.training.loop import Fitted, Plan, fit, make_accelerator
from engines.training.mindeye1_objective import LowLevelObjective, MindEye1Objective, MindEye1Weights, SeenTrials
from engines.training.rows import FileRows
from engines.training.state import Ema
from rtdecode.decode.networks.brain import BrainNetwork, BrainShape, LowLevel
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.packs.sealed import check_target

_Size = Annotated[int, Meta(ge=1)]
_TEACHER = ("latent", "teacher", "teacher_augmented")


@dataclass(frozen=True, slots=True, kw_only=True)
class MindEye1Sizes:
    """Sizes of the networks; the defaults are the published ones. Tokens come from the pictures; one is CLS alone.

    Attributes
    ----------
    hidden, projector : int
    blocks : int
    skips : bool
        See `BrainShape`.
    low_level : bool
        Train the low level too, which needs ``latent``, ``teacher`` and ``teacher_augmented`` of the pictures.
    prior_depth, prior_heads, prior_dim_head, timesteps : int
    """

    hidden: _Size = 4096
    projector: _Size = 2048
    blocks: Annotated[int, Meta(ge=0)] = 4
    skips: bool = True
    low_level: bool = True
    prior_depth: _Size = 6
    prior_heads: _Size = 12
    prior_dim_head: _Size = 64
    timesteps: _Size = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MindEye1Settings:
    """Content of the settings file; paths are relative to it.

    Attributes
    ----------
    kind : "mindeye1"
    pictures : str
        A safetensors file with ``tokens`` (p, t, d) and, for the low level, ``latent`` (p, 4, 64, 64), ``teacher`` and
        ``teacher_augmented`` (p, 256, 512).
    participant : str
        A safetensors file with ``betas`` (n, voxels), standardised, and ``picture`` (n,), rows of `pictures`.
    scaling : str
        Safetensors file with ``mean`` and ``scale`` (voxels,) of the betas before that; a bundle needs it. May be left
        out.
    steps : int
        Of each of the two trainings.
    batch : int
        Trials in a batch and process.
    rate, ema : float
    seed : int
    model : MindEye1Sizes
    weights : MindEye1Weights
    """

    kind: Literal["mindeye1"]
    pictures: str
    participant: str
    steps: _Size
    scaling: str = ""
    batch: Annotated[int, Meta(ge=2)] = 32
    rate: Annotated[float, Meta(gt=0)] = 3e-4
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    seed: int = 0
    model: MindEye1Sizes = field(default_factory=MindEye1Sizes)
    weights: MindEye1Weights = field(default_factory=MindEye1Weights)


def train_mindeye1(settings_path: Path, out: Path, *, licence: str, resume: bool) -> tuple[str, Fitted]:
    """Train as a settings file says and seal the averaged weights as a pack; see `train_from`.

    Raises
    ------
    TrainingError
        The settings or a file of data cannot be used.
    """
    accelerator = make_accelerator()
    folder = settings_path.parent
    with agreed(accelerator):
        check_target(out)
        settings = _read(settings_path)
        columns = {"tokens": 3} | (dict(zip(_TEACHER, (4, 3, 3), strict=True)) if settings.model.low_level else {})
        pictures = FileRows(folder / settings.pictures, columns)
        trials = FileRows(folder / settings.participant, {"betas": 2, "picture": 1})
        trials.refer("picture", pictures)
    torch.manual_seed(settings.seed)
    brain, prior, low_level = _networks(settings, pictures, trials)
    high = nn.ModuleDict({"brain": brain, "prior": prior})
    objective = MindEye1Objective(brain, prior, cosine_schedule(settings.model.timesteps), settings.weights)
    trainings: list[tuple[str, nn.Module, nn.Module, tuple[str, ...]]] = [("high", high, objective, ("tokens",))]
    if low_level is not None:
        trainings.append(("low", low_level, LowLevelObjective(low_level, settings.weights), _TEACHER))
    averages: dict[str, nn.Module] = {}
    spent, skipped = 0.0, 0
    for name, networks, of_batch, wanted in trainings:
        ema = Ema(networks, settings.ema)
        fitted = fit(
            of_batch,
            _batches(settings.batch, pictures, trials, wanted),
            _plan(name, settings),
            folder=out.parent / f"{out.name}-checkpoints",
            resume=resume,
            ema=ema,
            accelerator=accelerator,
        )
        averages[name] = ema.module
        spent, skipped = spent + fitted.seconds, skipped + fitted.skipped
    identity = _sealed(settings, folder, averages, out, licence, accelerator)
    return identity, Fitted(seconds=spent, skipped=skipped)


def _read(path: Path) -> MindEye1Settings:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=MindEye1Settings)
    except (OSError, msgspec.MsgspecError) as error:
        raise TrainingError(f"{path}: {error}") from None


def _networks(
    settings: MindEye1Settings, pictures: FileRows, trials: FileRows
) -> tuple[BrainNetwork, PriorNetwork, LowLevel | None]:
    sizes, (tokens, dim), (voxels,) = settings.model, pictures.shape("tokens"), trials.shape("betas")
    brain = BrainShape(
        voxels=voxels,
        hidden=sizes.hidden,
        tokens=tokens,
        dim=dim,
        projector=sizes.projector,
        blocks=sizes.blocks,
        skips=sizes.skips,
    )
    prior = PriorShape(
        tokens=tokens,
        dim=dim,
        depth=sizes.prior_depth,
        heads=sizes.prior_heads,
        dim_head=sizes.prior_dim_head,
        timesteps=sizes.timesteps,
    )
    low_level = LowLevel(voxels, sizes.hidden, blocks=sizes.blocks) if sizes.low_level else None
    return BrainNetwork(brain), PriorNetwork(prior), low_level


def _plan(name: str, settings: MindEye1Settings) -> Plan:
    details = {key: value for key, value in asdict(settings).items() if key not in ("steps", "rate", "seed", "scaling")}
    return Plan(name=name, steps=settings.steps, rate=settings.rate, seed=settings.seed, details=details)


def _batches(
    size: int, pictures: FileRows, trials: FileRows, wanted: tuple[str, ...]
) -> Callable[[torch.Generator], SeenTrials]:
    def draw_batch(draw: torch.Generator) -> SeenTrials:
        at = torch.randint(len(trials), (size,), generator=draw)
        rows = trials.rows("picture", at)
        return SeenTrials(trials.rows("betas", at), **{name: pictures.rows(name, rows) for name in wanted})

    return draw_batch


def _sealed(
    settings: MindEye1Settings,
    folder: Path,
    averages: dict[str, nn.Module],
    out: Path,
    licence: str,
    accelerator: Accelerator,
) -> str:
    """Seal the networks as `engines import` does."""
    if not accelerator.is_main_process:
        return ""
    draft = draft_networks(averages["high"]["brain"], averages["high"]["prior"], averages.get("low"))
    if settings.scaling:
        add_scaling(draft, folder / settings.scaling)
    return draft.seal(out, name=out.name, licence=licence, precision="float32")


def draft_networks(brain: BrainNetwork, prior: PriorNetwork, low_level: LowLevel | None) -> Draft:
    """Begin a pack of one participant's networks, as `engines import` does."""
    draft = Draft(kind="mindeye1")
    _add(draft, "brain", asdict(brain.shape), interfaces.brain, brain)
    _add(draft, "prior", asdict(prior.shape), interfaces.prior, prior)
    if low_level is not None:
        sizes = {"voxels": brain.shape.voxels, "hidden": brain.shape.hidden, "blocks": brain.shape.blocks}
        _add(draft, "low_level", {**sizes, "aligned": True}, interfaces.low_level, low_level)
    check_layout(draft, "brain", ("prior",))
    return draft


def _add(
    draft: Draft, name: str, sizes: dict[str, Any], interface: Callable[[dict[str, Any]], Interface], network: nn.Module
) -> None:
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    draft.add(name, DraftStage(kind=name, sizes=sizes, interface=interface(sizes), state=state, source="training"))
