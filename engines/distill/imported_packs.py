"""Distil prior or unCLIP of an imported pack (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn

from engines.distill.consistency import distil
from engines.distill.judging import Sampled, held_out, judge, prior_tokens, unclip_latents
from engines.distill.order import DistillOrder, plan_of, seal_student, trainable
from engines.distill.trials import DecodedTokens, Trials, check_shape, network_of
from engines.training.agreement import agreed
from engines.training.loop import Fitted, make_accelerator
from engines.training.rows import FileRows
from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description, Student
from rtdecode.decode.families.mindeye2.recipe import Recipe, recipe_of
from rtdecode.decode.families.mindeye2.unclip_step import UNCLIP_SIZES, size_features
from rtdecode.decode.sampling.edm import OFFSET_NOISE, guide, network_alphas_cumprod, network_sigmas
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.packs import EnginePack, open_pack


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
        trials = Trials(pack, order.participants, pictures, device, held_out)

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        """Trials of one participant: what was shown, and what the backbone makes of the betas."""
        shown, condition = trials.take(order.batch, draw)
        return pictures.rows("tokens", shown), condition

    student, fitted = distil(
        trainable(teacher),
        batches,
        predict=lambda network, noisy, t, condition: network(noisy, t, condition),
        teacher=lambda noisy, t, condition: teacher.guided(noisy, t, condition, cond_scale=order.guidance),
        alphas_cumprod=cosine_schedule(int(sizes.get("timesteps", 100))).alphas_cumprod,
        how=order.how,
        plan=plan_of(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return "", fitted
    shown, condition = trials.judged()
    levels = int(sizes.get("timesteps", 100))
    by_teacher, by_student = [
        prior_tokens(Sampled(network=one.to(device).eval(), recipe=recipe), condition, levels, order.plan.seed)
        for one, recipe in zip((teacher, student), _recipes(pack, "prior"), strict=True)
    ]
    judged = judge(
        by_teacher, by_student, pictures.rows("tokens", shown).to(device), decoded=True, seed=order.plan.seed
    )
    return seal_student(pack, order, "prior", student, judged, _described(pack, order, "prior")), fitted


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
        decoded = DecodedTokens(pack, order.participants, table, device, held_out) if order.participants else None
        apart = held_out(np.arange(len(table))) if decoded is None else decoded.trials.held_out
    drawn = torch.randn((tokens, width), generator=torch.Generator().manual_seed(order.plan.seed))
    unconditional = drawn.to(device)
    vector = torch.from_numpy(size_features(UNCLIP_SIZES))[None].to(device)
    sigmas = torch.from_numpy(network_sigmas()).to(device)
    trained_on = torch.from_numpy(np.setdiff1d(np.arange(len(table)), apart))

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        n = 0 if decoded is None else order.batch // 2
        at = trained_on[torch.randint(len(trained_on), (order.batch - n,), generator=draw)]
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
        trainable(teacher),
        batches,
        predict=clean,
        teacher=guided,
        alphas_cumprod=network_alphas_cumprod(),
        how=replace(order.how, offset=OFFSET_NOISE),
        plan=plan_of(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return "", fitted
    if decoded is None:
        rows = torch.from_numpy(apart)
        tried = table.rows("tokens", rows).to(device)
    else:
        rows, tried = decoded.judged(torch.Generator().manual_seed(order.plan.seed))
    by_teacher, by_student = [
        unclip_latents(
            Sampled(network=one.to(device).eval(), recipe=recipe), tried, sizes["sample_size"], order.plan.seed, nothing
        )
        for one, recipe, nothing in zip(
            (teacher, student), _recipes(pack, "unclip"), (unconditional, None), strict=True
        )
    ]
    truth = table.rows("latent", rows).to(device)
    judged = judge(by_teacher, by_student, truth, decoded=decoded is not None, seed=order.plan.seed)
    described = _described(pack, order, "unclip")
    return seal_student(pack, order, "unclip", student, judged, described, {"unconditional": drawn}), fitted


def _recipes(pack: EnginePack, stage: Student) -> tuple[Recipe, Recipe]:
    """How the teacher is sampled, and how its student will be."""
    said = pack.described(MindEye2Description)
    known = said.distilled.get(stage) or DistilledTable(
        teacher=pack.identity, guidance_baked_in=1.0, steps=0, skip=0, seed=0
    )
    student = structs.replace(said, distilled={**said.distilled, stage: known})
    return recipe_of(said), recipe_of(student)


def _described(
    pack: EnginePack, order: DistillOrder, stage: Student
) -> Callable[[DistilledTable], MindEye2Description]:
    said = pack.described(MindEye2Description)
    return lambda made: structs.replace(said, name=order.out.name, distilled={**said.distilled, stage: made}, parts={})
