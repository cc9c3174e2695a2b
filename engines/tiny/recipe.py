"""The whole recipe: train, measure, draw the contact sheet, seal (torch). Import this module inside functions only."""

from __future__ import annotations

import json
from pathlib import Path

from engines.tiny.data import draw_sample
from engines.tiny.export import round_to_half, seal_pack
from engines.tiny.report import contact_sheet, measure
from engines.tiny.train import train

N_PROTOTYPE_PICTURES = 8192


def make_pack(out: Path, *, seed: int, effort: float, resume: bool) -> str:
    """Train and write ``report.json``, ``contact_sheet.png`` and the sealed ``pack/`` into `out`.

    Returns
    -------
    str
        Identity of the pack.
    """
    trained = train(out, seed=seed, effort=effort, resume=resume)
    for module in (trained.embedder, trained.prior, trained.decoder, trained.captioner):
        round_to_half(module)
    figures = measure(trained, seed)
    (out / "report.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    contact_sheet(trained, out / "contact_sheet.png", seed)
    return seal_pack(trained, draw_sample(N_PROTOTYPE_PICTURES, seed + 8_000_000), figures, out / "pack")
