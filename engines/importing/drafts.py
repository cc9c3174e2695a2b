"""A pack of published networks: stages with their sizes and weights, sealed with what was left out and why."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.importing.keys import fit
from engines.importing.tensors import in_order, write_tensors
from rtdecode.decode.networks.build import empty
from rtdecode.errors import EngineError
from rtdecode.packs.description import DESCRIPTION, PACK_SCHEMA, Shape, StageTable, write_description
from rtdecode.packs.installed import installed_family
from rtdecode.packs.sealed import seal
from rtdecode.typed import checked

Interface = tuple[dict[str, Shape], dict[str, Shape]]
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DraftStage:
    """One network of a pack.

    Attributes
    ----------
    kind : str
        What builds it; see `rtdecode.decode.networks.build`.
    sizes : dict
        Its sizes, as written in ``pack.toml``.
    interface : tuple of dict
        Inputs and outputs by name, with their shapes; a string is a size that varies.
    state : mapping of str to Tensor
        Its weights.
    source : str
        File that they come from.
    files : sequence of Path
        Other files that it needs, copied beside its weights.
    """

    kind: str
    sizes: dict[str, Any]
    interface: Interface
    state: Mapping[str, Tensor]
    source: str
    files: Sequence[Path] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A pack in the making.

    Attributes
    ----------
    kind : str
        Name of the family.
    stages : dict of str to DraftStage
    dropped : dict
        For each file the reasons, and the keys left out for each.
    tables : dict
        Further tables of ``pack.toml``.
    tensors : dict
        Further files by their names without ``.safetensors``, and their tensors, which stay in float32.
    """

    kind: str
    stages: dict[str, DraftStage] = field(default_factory=dict)
    dropped: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, name: str, stage: DraftStage) -> None:
        """Add a stage.

        Raises
        ------
        CheckpointError
            Its weights are not exactly those of its network; the keys are named.
        """
        fit(stage.source, name, empty(stage.kind, stage.sizes), stage.state)
        self.stages[name] = stage

    def left_out(self) -> list[str]:
        """One line for each file and reason that keys were left out."""
        return [
            f"{source}: left out {len(keys)} keys: {reason}"
            for source, reasons in self.dropped.items()
            for reason, keys in reasons.items()
        ]

    def seal(self, out: Path, *, name: str, licence: str, precision: str) -> str:
        """Write and seal the pack; returns its identity."""

        def write(folder: Path) -> None:
            for stage, content in self.stages.items():
                shapes, parts = in_order(content.state)
                write_tensors(folder / f"{stage}.safetensors", shapes, parts, dtype=PRECISIONS[precision])
                for file in content.files:
                    (folder / stage).mkdir(exist_ok=True)
                    shutil.copyfile(file, folder / stage / file.name)
            for extra, tensors in self.tensors.items():
                shapes, parts = in_order(tensors)
                write_tensors(folder / f"{extra}.safetensors", shapes, parts, dtype=torch.float32)
            write_toml(
                folder,
                kind=self.kind,
                name=name,
                licence=licence,
                precision=precision,
                stages={k: describe(k, v.kind, v.sizes, v.interface) for k, v in self.stages.items()},
                tables={**self.tables, "dropped": _by_reason(self.dropped)},
            )

        return seal(out, PACK_SCHEMA, write)


def describe(name: str, kind: str, sizes: dict[str, Any], interface: Interface) -> StageTable:
    """Describe a stage for ``pack.toml``."""
    inputs, outputs = interface
    return StageTable(
        file=f"{name}.safetensors", network=kind, sizes=_without_none(sizes), inputs=inputs, outputs=outputs
    )


def write_toml(
    folder: Path,
    *,
    kind: str,
    name: str,
    licence: str,
    precision: str,
    stages: dict[str, StageTable],
    tables: Mapping[str, Any],
) -> None:
    """Write the ``pack.toml`` of a pack of published networks."""
    raw = {
        "schema": PACK_SCHEMA,
        "kind": kind,
        "name": name,
        "licence": licence,
        "precision": precision,
        "stages": stages,
        **tables,
    }
    family = installed_family(kind, source="kind")
    write_description(folder, checked(raw, family.description, source=DESCRIPTION, error=EngineError))


def _by_reason(dropped: Mapping[str, Mapping[str, list[str]]]) -> list[dict[str, Any]]:
    return [
        {"file": source, "reason": reason, "keys": keys}
        for source, reasons in dropped.items()
        for reason, keys in reasons.items()
    ]


def _without_none(value: Any) -> Any:
    """TOML has no null: a setting that is None is left out, which gives the same default."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value if v is not None]
    return value
