"""Teacher, students and the first regression decoder side by side (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.distill.judging import gate
from engines.tiny import picture_figures as metrics
from engines.tiny.conditions import through_noise
from engines.tiny.data import draw_sample
from engines.tiny.few_steps import FewSteps
from engines.tiny.pipelines import reconstruct
from engines.tiny.train import Trained, embed_all
from engines.tiny.training_report import N_HELD_OUT, R2_LEVELS, sheet, to_uint8
from rtdecode.decode.families.distilled_table import JudgedStudent
from rtdecode.simulate.world import CATEGORIES

COMPARED = ("identification", "two_way", "pix_corr", "ssim", "category")
_NAMES = {
    "regression": "regression",
    "teacher": "teacher",
    "student_1": "1 step",
    "student_2": "2 steps",
    "student_4": "4 steps",
}


def compare(trained: Trained, networks: FewSteps, seed: int) -> dict[str, Any]:
    """Figures of every pipeline on the same held-out pictures, by condition.

    Returns
    -------
    dict
        ``n``; ``chance`` of each figure that has one; for each condition (``true_tokens``, ``r2_0.5`` ...) and
        pipeline the mean and 95 % interval of ``identification`` (the picture, embedded again, is nearest to its own
        truth among 64), ``retrieval`` (the tokens it is drawn from are), ``two_way``, ``pix_corr``, ``ssim`` and
        ``category`` (named right by the judge); and ``student_2_minus_teacher``, paired, for those figures.
    """
    held_out = draw_sample(N_HELD_OUT, seed + 9_000_000)
    truth = torch.from_numpy(held_out.pictures).float() / 255
    true_tokens = embed_all(trained.embedder, held_out.pictures)
    category = torch.from_numpy(held_out.codes[:, : len(CATEGORIES)]).argmax(1)
    figures: dict[str, Any] = {
        "n": N_HELD_OUT,
        "chance": {"identification": 1 / metrics.POOL, "two_way": 0.5, "category": 1 / len(CATEGORIES)},
    }
    for name, tokens in _conditions(trained, true_tokens, seed).items():
        made = reconstruct(trained, networks, tokens, brain=name != "true_tokens", seed=seed + 9_000_000)
        values = {
            way: _values(trained, given, pictures, truth, true_tokens, category)
            for way, (given, pictures) in made.items()
        }
        figures[name] = {way: {key: _summary(value) for key, value in each.items()} for way, each in values.items()}
        figures[name]["student_2_minus_teacher"] = {
            key: _summary(values["student_2"][key] - values["teacher"][key]) for key in COMPARED
        }
    return figures


def gate_students(figures: Mapping[str, Any], allowed: float) -> None:
    """Let the students of prior and unCLIP pass that together lost no more than so many points on decoded tokens.

    Parameters
    ----------
    figures : mapping
        Of `compare`.
    allowed : float
        Points of two-way identification at each level of noise.

    Raises
    ------
    TrainingError
        They lost more.
    """
    for level in R2_LEVELS:
        each = figures[f"r2_{level:g}"]
        more, low, high = each["student_2_minus_teacher"]["two_way"]
        judged = JudgedStudent(
            pictures=figures["n"],
            decoded=True,
            teacher=each["teacher"]["two_way"][0],
            student=each["student_2"]["two_way"][0],
            points_lost=-100 * more,
            interval=(-100 * high, -100 * low),
        )
        gate(judged, allowed, "train longer (--effort), or state more points; --resume goes on from the checkpoints")


def contact_sheet(trained: Trained, networks: FewSteps, path: Path, seed: int) -> None:
    """Write a PNG: the truth and, for each condition, every pipeline; two pictures of each category."""
    pool = draw_sample(400, seed + 9_500_000)
    names = np.array([scene.category for scene in pool.scenes])
    index = np.concatenate([np.flatnonzero(names == name)[:2] for name in CATEGORIES])
    pictures = pool.pictures[index]
    true_tokens = embed_all(trained.embedder, pictures)
    rows = {"truth": pictures.transpose(0, 2, 3, 1)}
    for condition, tokens in _conditions(trained, true_tokens, seed).items():
        label = condition.replace("true_tokens", "true").replace("r2_0", "R2 ")
        brain = condition != "true_tokens"
        made = reconstruct(trained, networks, tokens, brain=brain, seed=seed + 9_500_000)
        for way, name in _NAMES.items():
            rows[f"{label} {name}"] = to_uint8(made[way][1])
    sheet(rows).quantize(256).save(path, optimize=True)


def _conditions(trained: Trained, tokens: Tensor, seed: int) -> dict[str, Tensor]:
    """Tokens that pictures are drawn from: the true ones, and what the commitment makes of noisy ones."""
    conditions = {"true_tokens": tokens}
    for level in R2_LEVELS:
        conditions[f"r2_{level:g}"] = through_noise(trained.prior, trained.noise, tokens, level, seed)[1]
    return conditions


def _values(
    trained: Trained, given: Tensor, pictures: Tensor, truth: Tensor, true_tokens: Tensor, category: Tensor
) -> dict[str, Tensor]:
    rounded = to_uint8(pictures).transpose(0, 3, 1, 2)
    pictures = torch.from_numpy(rounded).float() / 255
    mean = trained.noise.mean
    seen = embed_all(trained.embedder, rounded).flatten(1) - mean
    wanted = true_tokens.flatten(1) - mean
    with torch.no_grad():
        named = torch.cat([trained.judge(part).argmax(1) for part in pictures.split(128)])
    return {
        "identification": metrics.identified(seen, wanted),
        "retrieval": metrics.identified(given.flatten(1) - mean, wanted),
        "two_way": metrics.two_way(seen, wanted),
        "pix_corr": metrics.pix_corr(pictures, truth),
        "ssim": metrics.ssim(pictures, truth),
        "category": (named == category).float(),
    }


def _summary(values: Tensor) -> list[float]:
    """Mean and 95 % interval."""
    return [round(float(x), 4) for x in (values.mean(), *metrics.interval(values))]


def table(figures: Mapping[str, Any]) -> str:
    """Markdown of the figures of `compare`."""
    lines = [
        "| | | identification | two-way | PixCorr | SSIM | category | retrieval by tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for condition in ("true_tokens", *(f"r2_{level:g}" for level in R2_LEVELS)):
        for way, each in figures[condition].items():
            cells = [
                f"{each[key][0]:.3f} ({each[key][1]:.3f} to {each[key][2]:.3f})" if key in each else ""
                for key in (*COMPARED, "retrieval")
            ]
            lines.append(f"| {condition} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)
