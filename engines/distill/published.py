"""Distil prior or unCLIP of an imported pack (torch). Import this module inside functions only."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.copies import exported_files, seal_copy
from engines.distill.consistency import Distillation, distil
from engines.training.loop import Fitted, Plan, make_accelerator
from engines.training.processes import agreed
from engines.training.tables import Table
from rtdecode.bundle import EnginePack, open_pack
from rtdecode.decode.mindeye2.unclip import UNCLIP_SIZES, size_features
from rtdecode.decode.networks.build import load
from rtdecode.decode.sampling.edm import guide, network_alphas_cumprod, network_sigmas
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be distilled.

    Attributes
    ----------
    data : Path
        A safetensors file. For the prior ``tokens`` and ``condition`` (n, tokens, dim): image tokens and the backbone's
        of the same trials. For the unCLIP ``latent`` (n, 4, h, w), scaled, and ``tokens`` (n, tokens, dim) of pictures.
    out : Path
        Folder of the new pack; checkpoints go beside it.
    guidance : float
        Baked into the student; 1 is none.
    batch : int
    how : Distillation
    plan : Plan
    resume : bool
    """

    data: Path
    out: Path
    guidance: float
    batch: int
    how: Distillation
    plan: Plan
    resume: bool


def distil_prior(name: str, order: Order) -> tuple[str, Fitted]:
    """Distil the prior of a pack, its name or folder, and seal a copy with the student; returns the identity.

    The identity is empty in processes other than the first, and where pack or data cannot be used they end; see
    `agreed`.
    """
    accelerator = make_accelerator()
    with agreed(accelerator):
        pack = open_pack(name)
        teacher, sizes = _network(pack, "prior", accelerator.device)
        table = Table(order.data, {"tokens": 3, "condition": 3})
        _check_shape(order.data, table, "condition", (sizes["tokens"], sizes["dim"]))

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        at = torch.randint(len(table), (order.batch,), generator=draw)
        return table.rows("tokens", at), table.rows("condition", at)

    student, fitted = distil(
        _trainable(teacher),
        batches,
        predict=lambda network, noisy, t, condition: network(noisy, t, condition),
        teacher=lambda noisy, t, condition: teacher.guided(noisy, t, condition, cond_scale=order.guidance),
        alphas_cumprod=cosine_schedule(int(sizes.get("timesteps", 100))).alphas_cumprod,
        how=order.how,
        plan=order.plan,
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    return _reseal(pack, order, "prior", student, {}) if accelerator.is_main_process else "", fitted


def distil_unclip(name: str, order: Order) -> tuple[str, Fitted]:
    """Distil the unCLIP as `distil_prior` does the prior, guidance against fixed unconditional tokens baked in.

    The published sampler draws unconditional tokens anew for each picture; here they are drawn once, with the seed of
    the plan, and kept in the new pack as ``unconditional.safetensors``.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    with agreed(accelerator):
        pack = open_pack(name)
        teacher, sizes = _network(pack, "unclip", device)
        table = Table(order.data, {"latent": 4, "tokens": 3})
        tokens, width = table.shape("tokens")
        _check_shape(order.data, table, "tokens", (tokens, sizes["cross_attention_dim"]))
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
        plan=order.plan,
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    beside = {"unconditional": drawn}
    return _reseal(pack, order, "unclip", student, beside) if accelerator.is_main_process else "", fitted


def _network(pack: EnginePack, stage: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Load a pack's network in float32, and its sizes."""
    spec = pack.config["stages"].get(stage, {})
    if "network" not in spec:
        raise TrainingError(
            f"pack {pack.name}: expected a stage {stage} with safetensors weights, as `engines import` writes; "
            f"it has {', '.join(pack.config['stages'])}"
        )
    where = "cpu" if device.type == "cpu" else str(device)  # safetensors refuses "cpu:0", which several processes have
    network = load(spec["network"], spec["sizes"], pack.folder / spec["file"], device=where, dtype=torch.float32)
    return network.eval(), spec["sizes"]


def _trainable(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).train().requires_grad_(True)


def _check_shape(path: Path, table: Table, name: str, wanted: tuple[int, ...]) -> None:
    if table.shape(name) != wanted:
        raise TrainingError(f"{path}: {name}: expected rows of shape {wanted} for this pack, got {table.shape(name)}")


def _reseal(pack: EnginePack, order: Order, stage: str, student: nn.Module, beside: dict[str, Tensor]) -> str:
    """Seal a copy of a pack with the student in the place of its teacher."""

    def change(folder: Path) -> dict[str, Any]:
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in student.state_dict().items()}
        save_file(weights, folder / pack.config["stages"][stage]["file"])
        if beside:
            save_file(beside, folder / "unconditional.safetensors")
        distilled = {
            **pack.config.get("distilled", {}),
            stage: {
                "teacher": pack.identity,
                "guidance_baked_in": order.guidance,
                "steps": order.plan.steps,
                "skip": order.how.skip,
                "seed": order.plan.seed,
            },
        }
        config = {**pack.config, "name": order.out.name, "distilled": distilled}
        config.pop("parts", None)
        return config

    return seal_copy(pack, order.out, change, without=exported_files(pack))  # those of the teacher: export anew
