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

from engines.distill.consistency import Distillation, distil
from engines.distill.trials import DecodedTokens, Trials, check_shape, network_of
from engines.sealed_copies import exported_files, seal_copy
from engines.training.agreement import agreed
from engines.training.loop import Fitted, Plan, make_accelerator
from engines.training.rows import FileRows
from rtdecode.decode.families.mindeye2.mindeye2_description import DistilledTable, MindEye2Description, Student
from rtdecode.decode.families.mindeye2.unclip_step import UNCLIP_SIZES, size_features
from rtdecode.decode.sampling.edm import OFFSET_NOISE, guide, network_alphas_cumprod, network_sigmas
from rtdecode.decode.sampling.schedule import cosine_schedule
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
        Number of a ridge layer of the pack, and a safetensors file with ``betas`` (n, voxels), standardised as that
        layer wants them, and ``picture`` (n,), rows of `pictures`. The prior needs some.
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
        teacher, sizes = network_of(pack, "prior", device)
        pictures = FileRows(order.pictures, {"tokens": 3})
        check_shape(pictures, "tokens", (sizes["tokens"], sizes["dim"]))
        trials = Trials(pack, order.participants, pictures, device)

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        """Trials of one participant: what was shown, and what the backbone makes of the betas."""
        shown, condition = trials.take(order.batch, draw)
        return pictures.rows("tokens", shown), condition

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
    the plan, and kept in the new pack as ``unconditional.safetensors``. Where there are participants, half of each
    batch is conditioned on tokens that the prior makes of their betas, as in a session, and not on true ones.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    with agreed(accelerator):
        pack = open_pack(name)
        teacher, sizes = network_of(pack, "unclip", device)
        table = FileRows(order.pictures, {"latent": 4, "tokens": 3})
        tokens, width = table.shape("tokens")
        check_shape(table, "tokens", (tokens, sizes["cross_attention_dim"]))
        check_shape(table, "latent", (4, sizes["sample_size"], sizes["sample_size"]))
        decoded = DecodedTokens(pack, order.participants, table, device) if order.participants else None
    drawn = torch.randn((tokens, width), generator=torch.Generator().manual_seed(order.plan.seed))
    unconditional = drawn.to(device)
    vector = torch.from_numpy(size_features(UNCLIP_SIZES))[None].to(device)
    sigmas = torch.from_numpy(network_sigmas()).to(device)

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        n = 0 if decoded is None else order.batch // 2
        at = torch.randint(len(table), (order.batch - n,), generator=draw)
        tokens = table.rows("tokens", at)
        if decoded is not None and n:
            shown, made = decoded.take(n, draw)
            at, tokens = torch.cat([at, shown]), torch.cat([tokens, made.to(tokens)])
        return table.rows("latent", at), tokens

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
        how=replace(order.how, offset=OFFSET_NOISE),
        plan=_plan(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    beside = {"unconditional": drawn}
    return _reseal(pack, order, "unclip", student, beside) if accelerator.is_main_process else "", fitted


def _plan(pack: EnginePack, order: DistillOrder) -> Plan:
    return replace(order.plan, details={"pack": pack.identity, "guidance": order.guidance, "batch": order.batch})


def _trainable(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).train().requires_grad_(True)


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
