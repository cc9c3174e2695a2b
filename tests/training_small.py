"""Data and settings small enough to train in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save_file

from engines.training.loop import Plan
from rtdecode.packs import open_pack

SMALL = {"hidden": 16, "blocks": 1, "low_level": False, "prior_depth": 1, "prior_heads": 1, "prior_dim_head": 16}


def write_training(folder: Path) -> None:
    """Write two participants who saw twelve pictures."""
    draw = torch.Generator().manual_seed(0)
    save_file({"tokens": torch.randn(12, 2, 8, generator=draw)}, folder / "pictures.safetensors")
    for name, voxels in (("sub-01", 9), ("sub-02", 7)):
        rows = torch.randint(12, (20,), generator=draw)
        save_file({"betas": torch.randn(20, voxels, generator=draw), "picture": rows}, folder / f"{name}.safetensors")


def write_settings(path: Path, **changed: Any) -> Path:
    """Write the settings of a training on `write_training`'s data, which lie beside them."""
    content = {
        "pictures": "pictures.safetensors",
        "participants": ["sub-01.safetensors", "sub-02.safetensors"],
        "steps": 6,
        "batch": 4,
        "model": SMALL,
        "weights": {"anchor": 1.0},
    }
    path.write_bytes(tomli_w.dumps({**content, **changed}).encode())
    return path


def write_distilling(folder: Path, pack: Path, n: int = 6) -> tuple[list[object], list[object]]:
    """Write pictures and trials for a pack; return the words that name the pictures, and the trials."""
    said = open_pack(str(pack)).description
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(n, said.tokens.count, said.tokens.channels, generator=draw)
    save_file({"tokens": tokens, "latent": torch.randn(n, 4, 8, 8, generator=draw)}, folder / "shown.safetensors")
    (voxels,) = said.stage("ridge").sizes["voxels"]
    betas, rows = torch.randn(2 * n, voxels, generator=draw), torch.arange(2 * n) % n
    save_file({"betas": betas, "picture": rows}, folder / "trials.safetensors")
    shown, trials = folder / "shown.safetensors", folder / "trials.safetensors"
    return ["--pictures", shown], ["--participant", f"0={trials}"]


def small_stage_settings(stages: Mapping[str, Plan]) -> dict[str, Any]:
    """Return attributes of `engines.tiny.train` that make it a matter of seconds, with a checkpoint at each step."""
    small = {name: replace(plan, steps=3, save_every_s=0.0, details={"batch": 4}) for name, plan in stages.items()}
    return {"STAGES": small, "_FEWEST": 3, "N_PICTURES": 300, "N_JUDGE_PICTURES": 40}
