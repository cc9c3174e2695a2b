"""The training objectives against the published code's own numbers, and against half precision."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from engines.training.losses import (
    Mix,
    add_noise,
    bimixco,
    half_cosine,
    mix_voxels,
    prior_loss,
    soft_clip,
    soft_cont,
)
from rtdecode.decode.sampling.schedule import cosine_schedule
from tests.golden import FORWARD, LOSS, Golden, close, goldens, numbered, said
from tests.unit.test_golden_prior import prior_of


def tensors(golden: Golden, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(golden.tensors[name]) for name in names]


def mix_of(golden: Golden) -> Mix:
    perm, betas, select = tensors(golden, "perm", "betas", "select")
    return Mix(perm=perm, betas=betas, select=select)


def temperatures(golden: Golden, prefix: str) -> dict[str, float]:
    """Temperature of every loss of a kind, from its name or else from its description."""
    found = {}
    for name in golden.tensors:
        if name.startswith(prefix):
            text = name if re.search(r"\d$", name) else golden.info["tensors"][name]["what"]
            found[name] = float(said(r"([\d.]+)$", text))
    assert found
    return found


def test_golden_losses_mixing(shared: Path) -> None:
    for golden in goldens(shared, "me2_losses"):
        (voxels,) = tensors(golden, "voxels_in")
        close(golden, "voxels_mixed", mix_voxels(voxels, mix_of(golden)), LOSS)


def test_golden_losses_contrastive(shared: Path) -> None:
    for golden in goldens(shared, "me2_losses"):
        predicted, target = tensors(golden, "preds", "targs")
        for name, temperature in temperatures(golden, "bimixco").items():
            close(golden, name, bimixco(predicted, target, temperature=temperature, mix=mix_of(golden)), LOSS)
        # Made with the published function's default temperature.
        close(golden, "nce_nomix", bimixco(predicted, target, temperature=0.1), LOSS)
        for name, temperature in temperatures(golden, "softclip").items():
            close(golden, name, soft_clip(predicted, target, temperature=temperature), LOSS)
        student, teacher, augmented = tensors(golden, "sc_student", "sc_teacher", "sc_teacher_aug")
        for name, temperature in temperatures(golden, "soft_cont").items():
            close(golden, name, soft_cont(student, teacher, augmented, temperature=temperature), LOSS)
        for name, count in numbered(golden, r"cosine_anneal_(\d+)"):
            at = np.linspace(0, 1, count)
            close(golden, name, [half_cosine(0.004, 0.0075, progress) for progress in at], LOSS)


@torch.no_grad()
def test_golden_losses_prior(shared: Path) -> None:
    for golden in goldens(shared, "me2_losses"):
        weights = golden.weights()
        schedule = cosine_schedule(weights.dims["timesteps"])
        clean, condition, noise, t = tensors(golden, "prior_image_embed", "prior_text_embed", "prior_noise", "prior_t")
        keep_condition, keep_image = tensors(golden, "prior_brain_keep_mask", "prior_image_keep_mask")
        close(golden, "prior_x_noisy", add_noise(schedule, clean, t, noise), FORWARD)
        loss, predicted = prior_loss(
            prior_of(weights),
            schedule,
            clean,
            condition,
            t=t,
            noise=noise,
            keep_condition=keep_condition,
            keep_image=keep_image,
        )
        close(golden, "prior_loss", loss, LOSS)
        close(golden, "prior_pred", predicted, FORWARD)
