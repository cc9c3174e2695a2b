"""What ``pack.toml`` says: the tables that every pack has, and how they are read and written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
import tomli_w
from msgspec import Meta, field

from rtdecode.errors import EngineError
from rtdecode.packs.installed import installed_family
from rtdecode.typed import Table, checked

PACK_SCHEMA = "rtdecode.engine-pack/1"
DESCRIPTION = "pack.toml"
Shape = list[int | str]
"""Of an input or output; a text is a size that varies."""
Precision = Literal["float32", "float16", "bfloat16"]
PartPrecision = Literal["float32", "mixed", "float16", "bfloat16"]
"""From the finest to the coarsest."""
Count = Annotated[int, Meta(ge=1)]
Described = TypeVar("Described", bound="PackDescription")


class StageTable(Table, frozen=True, kw_only=True, omit_defaults=True):
    """One network of a pack.

    Attributes
    ----------
    file : str
        ONNX file or, where `network` is given, safetensors file of its weights.
    inputs, outputs : dict of str to shape
        Arrays that it takes and gives, by name; a text in a shape is a size that varies.
    network : str
        Kind of a torch network; see `rtdecode.decode.networks.build`.
    sizes : dict
        Of that network.
    """

    file: str
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    network: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)


class PartTable(Table, frozen=True, kw_only=True, omit_defaults=True):
    """One exported part of a stage: what is computed in one call.

    Attributes
    ----------
    stage : str
        Of which it is a part.
    file : str
        ONNX file.
    precision : str
        Of the file's tensors; ``mixed``: products of linear layers and convolutions in float16, the rest in float32.
    tolerance : float
        Largest difference from torch in float32, relative to the largest value.
    opset : int
        Of ONNX.
    inputs : dict of str to shape
        As of a stage.
    outputs : list of str
        Names of the arrays that it gives.
    difference : float or None
        What was measured when the file was written.
    """

    stage: str
    file: str
    precision: PartPrecision
    tolerance: Annotated[float, Meta(gt=0)]
    opset: Count
    inputs: dict[str, Shape]
    outputs: list[str]
    difference: float | None = None


class TokenTable(Table, frozen=True, kw_only=True, omit_defaults=True):
    """Layout of image tokens.

    Attributes
    ----------
    count, channels : int
        Tokens of a picture, and numbers in each.
    groups : dict of str to (int, int)
        First and last + 1 of the flattened values of each group.
    """

    count: Count
    channels: Count
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)


class PackDescription(Table, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml`` that every family has; a family adds its own tables.

    Attributes
    ----------
    schema : str
        ``rtdecode.engine-pack/1``.
    name : str
        Of the pack.
    tokens : TokenTable
        Layout of the tokens that its embedder gives.
    stages : dict of str to StageTable
        Its networks by name; which there must be is the family's to say.
    kind : str
        Name of the family.
    licence, description : str
        Of the weights, for whoever gets the pack.
    precision : str or None
        Of the weights of networks.
    parts : dict of str to PartTable
        By name; there are none before ``rtdecode engines export``.
    """

    family: ClassVar[str] = ""
    """The `kind` that a family's own description is of."""

    schema: str
    name: str
    tokens: TokenTable
    stages: dict[str, StageTable]
    kind: str = "tiny"
    licence: str = ""
    description: str = ""
    precision: Precision | None = None
    parts: dict[str, PartTable] = field(default_factory=dict)

    @property
    def has_networks(self) -> bool:
        """Whether a stage has weights of a torch network."""
        return any(stage.network for stage in self.stages.values())

    def stage(self, name: str) -> StageTable:
        """One stage.

        Raises
        ------
        EngineError
            The pack has none of that name.
        """
        if name not in self.stages:
            raise EngineError(
                f"pack {self.name}: {DESCRIPTION}: stages.{name}: expected a table, got none; there are "
                f"{', '.join(self.stages) or 'none'}"
            )
        return self.stages[name]

    def size(self, stage: str, name: str, default: int | None = None) -> int:
        """Whole number among the sizes of a stage.

        Raises
        ------
        EngineError
            There is none.
        """
        value = self.stage(stage).sizes.get(name, default)
        if not isinstance(value, int):
            raise EngineError(
                f"pack {self.name}: {DESCRIPTION}: stages.{stage}.sizes.{name}: expected a whole number, got {value!r}"
            )
        return value

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield place in ``pack.toml`` and name of each file that it names."""
        for name, stage in self.stages.items():
            yield f"stages.{name}.file", stage.file
        for name, part in self.parts.items():
            yield f"parts.{name}.file", part.file


def read_description(folder: Path) -> PackDescription:
    """Read the ``pack.toml`` of a folder, checked by the family that it names.

    Raises
    ------
    EngineError
        It is missing, not TOML, of another version, of a kind that is not installed, or says what its family does not
        know; the place is named.
    """
    path = folder / DESCRIPTION
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: expected a TOML file: {error}") from None
    if raw.get("schema") != PACK_SCHEMA:
        raise EngineError(
            f"{path}: schema: expected {PACK_SCHEMA}, got {raw.get('schema')}: another version of rtdecode wrote it"
        )
    kind = raw.get("kind", "tiny")
    if not isinstance(kind, str):
        raise EngineError(f"{path}: kind: expected text, got {kind!r}")
    family = installed_family(kind, source=f"{path}: kind")
    found: PackDescription = checked(raw, family.description, source=str(path), error=EngineError)
    return found


def write_description(folder: Path, description: PackDescription) -> None:
    """Write the ``pack.toml`` of a folder."""
    (folder / DESCRIPTION).write_bytes(tomli_w.dumps(msgspec.to_builtins(description)).encode())
