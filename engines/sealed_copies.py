"""A sealed copy of a pack with some files changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from rtdecode.bundle import MANIFEST, PACK_SCHEMA, EnginePack, seal

_CONFIG = "pack.toml"


def seal_copy(
    pack: EnginePack, out: Path, change: Callable[[Path], Mapping[str, Any]], *, without: Collection[str] = ()
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
        sealed = json.loads((pack.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in sealed:
            if name == _CONFIG or name.removesuffix(".data") in without:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pack.folder / name, folder / name)
        (folder / _CONFIG).write_bytes(tomli_w.dumps(change(folder)).encode())

    return seal(out, PACK_SCHEMA, write)


def exported_files(pack: EnginePack) -> set[str]:
    """Names of the ONNX files that a pack has of its networks; none before `engines export`."""
    return {part["file"] for part in pack.config.get("parts", {}).values()}
