"""The whole recipe: train, measure, draw the contact sheet, seal (torch). Import this module inside functions only."""

from __future__ import annotations

from pathlib import Path

import torch

from engines.tiny.comparison import compare, contact_sheet, gate_students, table
from engines.tiny.data import draw_sample
from engines.tiny.export import round_to_half, seal_pack
from engines.tiny.few_steps import train_few_steps
from engines.tiny.precision import half_precision
from engines.tiny.train import train
from engines.tiny.training_report import measure

N_PROTOTYPE_PICTURES = 8192


def make_pack(out: Path, *, seed: int, effort: float, resume: bool, threads: int, lose: float = 2.0) -> str:
    """Train and write ``report.json``, ``table.md``, ``contact_sheet.png`` and the sealed ``pack/`` into `out`.

    Parameters
    ----------
    out, seed, effort, resume
        As in `engines.tiny.train.train`.
    threads : int
        Of torch, in the whole process. Another number gives other weights, as does a machine of another precision
        (`engines.tiny.precision`); the report tells both.
    lose : float
        Points of two-way identification that the students may lose against their teachers on decoded tokens.

    Returns
    -------
    str
        Identity of the pack.

    Raises
    ------
    TrainingError
        The students lost more, and the pack is not sealed; or as in `engines.tiny.train.train`.
    """
    torch.set_num_threads(threads)
    trained = train(out, seed=seed, effort=effort, resume=resume)
    for module in (trained.embedder, trained.prior, trained.decoder, trained.captioner):
        round_to_half(module)
    few = train_few_steps(trained, out, seed=seed, effort=effort, resume=resume)
    for module in (few.autoencoder, few.prior, few.prior_teacher, few.unclip, few.unclip_teacher):
        round_to_half(module)
    contact_sheet(trained, few, out / "contact_sheet.png", seed)
    figures = measure(trained, seed)
    figures |= {"threads": threads, "precision": str(half_precision() or torch.float32).removeprefix("torch.")}
    took = trained.stages | few.stages
    figures["seconds"] = {name: fitted.seconds for name, fitted in took.items()}
    figures["skipped_steps"] = {name: fitted.skipped for name, fitted in took.items()}
    figures["participants_r2"] = few.r2
    figures["few_steps"] = compare(trained, few, seed)
    (out / "table.md").write_text(table(figures["few_steps"]) + "\n", encoding="utf-8")
    gate_students(figures["few_steps"], lose)
    identity = seal_pack(trained, few, draw_sample(N_PROTOTYPE_PICTURES, seed + 8_000_000), figures, out / "pack")
    (out / "report.json").write_text((out / "pack" / "report.json").read_text(encoding="utf-8"), encoding="utf-8")
    return identity
