"""Descriptions of packs and bundles that are just enough to be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.packs.description import PACK_SCHEMA, PartTable, TokenTable
from rtdecode.packs.participant_bundle import Provenance, write_records


def description(name: str = "small", **tables: Any) -> MindEye2Description:
    given = {"tokens": TokenTable(count=2, channels=8), "stages": {}, **tables}
    return MindEye2Description(**{"schema": PACK_SCHEMA, "name": name, "kind": "mindeye2", **given})


def part(file: str) -> PartTable:
    return PartTable(
        stage="part", file=file, precision="float32", tolerance=0.1, opset=23, inputs={"x": ["batch"]}, outputs=["y"]
    )


def provenance(**changed: Any) -> Provenance:
    given: dict[str, Any] = {
        "pack": "a pack", "pack_name": "small", "participant": "01", "session": "01", "left_out": [], "trials": 8,
        "voxels": 3, "mask_voxels": 4, "components": [2], "heads": {"encoding": 1.0},
        "noise_models": {"3 voxels, rank 0": 1.0}, "null_trials": 0, "null": "differences", "null_statistics": 20,
        "rest": 0, "group_r2": [0.1], "live_components": 2,
        "category_accuracy": 0.5, "category_p": 0.01, "percentile": 0.7, "percentile_interval": (0.6, 0.8),
        "percentile_p": 0.01, "decoder_percentile": 0.7, "leave_out": "trial", "seed": 0, "categories": ["a", "b"],
        "stimuli": ["s1", "s2"], "group_prior": "", "group_weight": 0.0,
    }  # fmt: skip
    return Provenance(**{**given, **changed})


def write_provenance(folder: Path, **changed: Any) -> None:
    write_records(folder, provenance(**changed), [])
