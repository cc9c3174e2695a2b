"""What is to be distilled, and how a student comes into a pack (torch). Import this module inside functions only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from engines.distill.consistency import Distillation
from engines.distill.judging import gate, told
from engines.sealed_copies import exported_files, seal_copy
from engines.training.loop import Plan
from rtdecode.decode.families.distilled_table import DistilledTable, JudgedStudent
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOrder:
    """What is to be distilled.

    Attributes
    ----------
    pictures : Path
        A safetensors file with ``tokens`` (p, tokens, dim) of pictures and, for what draws, their ``latent``
        (p, channels, h, w), of the unCLIP scaled; see ``engines embed --unclip-latents``.
    participants : sequence of (int, Path)
        Number of a ridge layer of the pack, and a safetensors file with ``betas`` (n, voxels), standardised as that
        layer wants them, and ``picture`` (n,), rows of `pictures`. The prior needs some; stage C takes none.
    out : Path
        Folder of the new pack; checkpoints go beside it.
    guidance : float
        Baked into the student; 1 is none.
    batch : int
    how : Distillation
    plan : Plan
    resume : bool
    lose : float
        Points of two-way identification on held-out pictures that the student may lose; else it is not sealed.
    """

    pictures: Path
    participants: Sequence[tuple[int, Path]]
    out: Path
    guidance: float
    batch: int
    how: Distillation
    plan: Plan
    resume: bool
    lose: float = 2.0


def plan_of(pack: EnginePack, order: DistillOrder) -> Plan:
    """Return the plan with what else the weights depend on."""
    return replace(order.plan, details={"pack": pack.identity, "guidance": order.guidance, "batch": order.batch})


def trainable(teacher: nn.Module) -> nn.Module:
    """Copy a teacher, for its student to begin as."""
    return copy.deepcopy(teacher).train().requires_grad_(True)


def seal_student(
    pack: EnginePack,
    order: DistillOrder,
    stage: str,
    student: nn.Module,
    judged: JudgedStudent,
    describe: Callable[[DistilledTable], PackDescription],
    beside: Mapping[str, Tensor] | None = None,
) -> str:
    """Seal a copy of a pack with the student in the place of its teacher, if it is worth it; returns the identity.

    Parameters
    ----------
    pack : EnginePack
    order : DistillOrder
    stage : str
    student : Module
    judged : JudgedStudent
    describe : callable
        How the student came about to the content of the new ``pack.toml``.
    beside : mapping of str to Tensor, optional
        Further tensors, each the only one of a file of its name.

    Raises
    ------
    TrainingError
        The student lost more than the order allows.
    """
    log.info("%s: %s", stage, told(judged))
    gate(judged, order.lose)
    made = DistilledTable(
        teacher=pack.identity,
        guidance_baked_in=order.guidance,
        steps=order.plan.steps,
        skip=order.how.skip,
        seed=order.plan.seed,
        judged=judged,
    )

    def change(folder: Path) -> PackDescription:
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in student.state_dict().items()}
        save_file(weights, folder / pack.description.stage(stage).file)
        for name, value in (beside or {}).items():
            save_file({name: value}, folder / f"{name}.safetensors")
        return describe(made)

    return seal_copy(pack, order.out, change, without=exported_files(pack))  # those of the teacher: export anew
