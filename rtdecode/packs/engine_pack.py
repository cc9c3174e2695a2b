"""Engine packs: the networks that a session runs, in a sealed folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rtdecode.errors import BundleError, EngineError
from rtdecode.packs.description import DESCRIPTION, PACK_SCHEMA, Described, PackDescription, read_description
from rtdecode.packs.sealed import listed, read_tensors, verify

GROUP = "rtdecode.packs"
"""Entry points: the name is a pack's, the object gives its folder."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnginePack:
    """A verified engine pack.

    Attributes
    ----------
    folder : Path
    identity : str
        SHA-256 of its manifest.
    description : PackDescription
        Content of ``pack.toml``.
    """

    folder: Path
    identity: str
    description: PackDescription

    @property
    def name(self) -> str:
        """Name of the pack."""
        return self.description.name

    def described(self, kind: type[Described]) -> Described:
        """Return the description as that of one family.

        Raises
        ------
        EngineError
            The pack is of another family.
        """
        if not isinstance(self.description, kind):
            raise EngineError(f"pack {self.name}: expected kind {kind.family!r}, got {self.description.kind!r}")
        return self.description

    def digest(self, filename: str) -> str:
        """SHA-256 of one of its files, as the manifest says; empty if there is none of that name."""
        return listed(self.folder).get(filename, "")

    def tensors(self, filename: str) -> dict[str, NDArray[Any]]:
        """Load one safetensors file of the pack."""
        return read_tensors(self.folder / filename)


def open_pack(name_or_folder: str) -> EnginePack:
    """Open an installed pack by name, or any pack by its folder.

    Raises
    ------
    BundleError
        There is none, or its content is not what its manifest says.
    EngineError
        Its ``pack.toml`` is not what its family reads; see `read_description`.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    folder = Path(known[name_or_folder].load()()) if name_or_folder in known else Path(name_or_folder)
    if not folder.is_dir():
        raise BundleError(
            f"engine pack {name_or_folder!r}: expected a folder or an installed pack ({', '.join(sorted(known))})"
        )
    pack = EnginePack(folder=folder, identity=verify(folder, PACK_SCHEMA), description=read_description(folder))
    files = listed(folder)
    for place, filename in pack.description.files():
        if filename not in files:
            raise EngineError(f"{folder / DESCRIPTION}: {place}: expected a file of the pack, got {filename!r}")
    return pack
