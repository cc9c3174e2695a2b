"""A sealed copy of a pack with some files changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from rtdecode.packs import EnginePack
from rtdecode.packs.description import DESCRIPTION, PACK_SCHEMA, PackDescription, write_description
from rtdecode.packs.sealed import listed, seal


def seal_copy(
    pack: EnginePack, out: Path, change: Callable[[Path], PackDescription], *, without: Collection[str] = ()
) -> str:
    """Seal a copy of a pack with some files changed; plans, which are no part of the seal, stay behind.

    Parameters
    ----------
    pack : EnginePack
    out : Path
        Folder of the new pack.
    change : callable
        Is given the folder with the copied files, writes into it, and returns the content of the new ``pack.toml``.
    without : collection of str
        Files of the pack that are not copied, nor is the data beside them (``.data``).

    Returns
    -------
    str
        Identity of the new pack.
    """

    def write(folder: Path) -> None:
        for name in listed(pack.folder):
            if name == DESCRIPTION or name.removesuffix(".data") in without:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pack.folder / name, folder / name)
        write_description(folder, change(folder))

    return seal(out, PACK_SCHEMA, write)


def exported_files(pack: EnginePack) -> set[str]:
    """Names of the ONNX files that a pack has of its networks; none before `engines export`."""
    return {part.file for part in pack.description.parts.values()}
