"""Distil prior or unCLIP of an imported pack (torch). Import this module inside functions only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from engines.distill.consistency import Distillation, distil
from engines.sealed_copies import exported_files, seal_copy
from engines.training.agreement import agreed
from engines.training.loop import Fitted, Plan, make_accelerator
from engines.training.rows import FileRows
from rtdecode.decode.families.mindeye2.assembly import ridge_layer
from rtdecode.decode.families.mindeye2.mindeye2_description import DistilledTable, MindEye2Description, Student
from rtdecode.decode.families.mindeye2.unclip_step import UNCLIP_SIZES, size_features
from rtdecode.decode.networks.build import load
from rtdecode.decode.sampling.edm import guide, network_alphas_cumprod, network_sigmas
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.packs import EnginePack, open_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOrder:
    """What is to be distilled.

    Attributes
    ----------
    pictures : Path
        A safetensors file with ``tokens`` (p, tokens, dim) of pictures and, for the unCLIP, their ``latent``
        (p, 4, h, w), scaled; see ``engines embed --unclip-latents``.
    participants : sequence of (int, Path)
        For the prior: number of a ridge layer of the pack, and a safetensors file with ``betas`` (n, voxels),
        standardised as that layer wants them, and ``picture`` (n,), rows of `pictures`.
    out : Path
        Folder of the new pack; checkpoints go beside it.
    guidance : float
        Baked into the student; 1 is none.
    batch : int
    how : Distillation
    plan : Plan
    resume : bool
    """

    pictures: Path
    participants: Sequence[tuple[int, Path]]
    out: Path
    guidance: float
    batch: int
    how: Distillation
    plan: Plan
    resume: bool


def distil_prior(name: str, order: DistillOrder) -> tuple[str, Fitted]:
    """Distil the prior of a pack, its name or folder, and seal a copy with the student; returns the identity.

    The identity is empty in processes other than the first, and where pack or data cannot be used they end; see
    `agreed`.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    with agreed(accelerator):
        pack = open_pack(name)
        teacher, sizes = _network(pack, "prior", device)
        backbone, _ = _network(pack, "backbone", device)
        pictures = FileRows(order.pictures, {"tokens": 3})
        _check_shape(pictures, "tokens", (sizes["tokens"], sizes["dim"]))
        people = [_person(pack, number, path, pictures, device) for number, path in order.participants]

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        """Trials of one participant: what was shown, and what the backbone makes of the betas."""
        trials, weight, bias = people[int(torch.randint(len(people), (1,), generator=draw))]
        at = torch.randint(len(trials), (order.batch,), generator=draw)
        with torch.no_grad():
            hidden = functional.linear(trials.rows("betas", at).to(device), weight, bias)
            condition = backbone(hidden[:, None]).tokens
        return pictures.rows("tokens", trials.rows("picture", at)), condition

    student, fitted = distil(
        _trainable(teacher),
        batches,
        predict=lambda network, noisy, t, condition: network(noisy, t, condition),
        teacher=lambda noisy, t, condition: teacher.guided(noisy, t, condition, cond_scale=order.guidance),
        alphas_cumprod=cosine_schedule(int(sizes.get("timesteps", 100))).alphas_cumprod,
        how=order.how,
        plan=_plan(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    return _reseal(pack, order, "prior", student, {}) if accelerator.is_main_process else "", fitted


def distil_unclip(name: str, order: DistillOrder) -> tuple[str, Fitted]:
    """Distil the unCLIP as `distil_prior` does the prior, guidance against fixed unconditional tokens baked in.

    The published sampler draws unconditional tokens anew for each picture; here they are drawn once, with the seed of
    the plan, and kept in the new pack as ``unconditional.safetensors``.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    with agreed(accelerator):
        pack = open_pack(name)
        teacher, sizes = _network(pack, "unclip", device)
        table = FileRows(order.pictures, {"latent": 4, "tokens": 3})
        tokens, width = table.shape("tokens")
        _check_shape(table, "tokens", (tokens, sizes["cross_attention_dim"]))
        _check_shape(table, "latent", (4, sizes["sample_size"], sizes["sample_size"]))
    drawn = torch.randn((tokens, width), generator=torch.Generator().manual_seed(order.plan.seed))
    unconditional = drawn.to(device)
    vector = torch.from_numpy(size_features(UNCLIP_SIZES))[None].to(device)
    sigmas = torch.from_numpy(network_sigmas()).to(device)

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        at = torch.randint(len(table), (order.batch,), generator=draw)
        return table.rows("latent", at), table.rows("tokens", at)

    def clean(network: nn.Module, noisy: Tensor, t: Tensor, given: Tensor) -> Tensor:
        sigma = sigmas[t][:, None, None, None]
        signal = (1 + sigma.square()).rsqrt()
        noise = network(noisy, t, given, vector.expand(len(noisy), -1)).float()
        return (noisy - sigma * signal * noise) / signal

    def guided(noisy: Tensor, t: Tensor, given: Tensor) -> Tensor:
        without = clean(teacher, noisy, t, unconditional.expand_as(given))
        out: Tensor = guide(clean(teacher, noisy, t, given), without, order.guidance)
        return out

    student, fitted = distil(
        _trainable(teacher),
        batches,
        predict=clean,
        teacher=guided,
        alphas_cumprod=network_alphas_cumprod(),
        how=order.how,
        plan=_plan(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    beside = {"unconditional": drawn}
    return _reseal(pack, order, "unclip", student, beside) if accelerator.is_main_process else "", fitted


def _network(pack: EnginePack, stage: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Load a pack's network in float32, and its sizes."""
    stages = pack.description.stages
    if stage not in stages or not stages[stage].network:
        raise TrainingError(
            f"pack {pack.name}: expected a stage {stage} with safetensors weights, as `engines import` writes; "
            f"it has {', '.join(stages)}"
        )
    where = "cpu" if device.type == "cpu" else str(device)  # safetensors refuses "cpu:0", which several processes have
    network = load(pack, stage, device=where, dtype=torch.float32)
    return network.eval(), stages[stage].sizes


def _plan(pack: EnginePack, order: DistillOrder) -> Plan:
    return replace(order.plan, details={"pack": pack.identity, "guidance": order.guidance, "batch": order.batch})


def _trainable(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).train().requires_grad_(True)


def _person(
    pack: EnginePack, number: int, path: Path, pictures: FileRows, device: torch.device
) -> tuple[FileRows, Tensor, Tensor]:
    """Trials of a participant, and weights and bias of the ridge layer."""
    trials = FileRows(path, {"betas": 2, "picture": 1})
    trials.refer("picture", pictures)
    weight, bias = (torch.from_numpy(part).to(device) for part in ridge_layer(pack, number))
    _check_shape(trials, "betas", (weight.shape[1],))
    return trials, weight, bias


def _check_shape(table: FileRows, name: str, wanted: tuple[int, ...]) -> None:
    if table.shape(name) != wanted:
        raise TrainingError(
            f"{table.path}: {name}: expected rows of shape {wanted} for this pack, got {table.shape(name)}"
        )


def _reseal(
    pack: EnginePack, order: DistillOrder, stage: Student, student: nn.Module, beside: dict[str, Tensor]
) -> str:
    """Seal a copy of a pack with the student in the place of its teacher."""

    def change(folder: Path) -> MindEye2Description:
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in student.state_dict().items()}
        save_file(weights, folder / pack.description.stage(stage).file)
        if beside:
            save_file(beside, folder / "unconditional.safetensors")
        said = pack.described(MindEye2Description)
        made = DistilledTable(
            teacher=pack.identity,
            guidance_baked_in=order.guidance,
            steps=order.plan.steps,
            skip=order.how.skip,
            seed=order.plan.seed,
        )
        return structs.replace(said, name=order.out.name, distilled={**said.distilled, stage: made}, parts={})

    return seal_copy(pack, order.out, change, without=exported_files(pack))  # those of the teacher: export anew
