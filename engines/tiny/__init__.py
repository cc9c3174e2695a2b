"""The tiny engine packs: their recipe, and the sealed results in `pack/` and `imagery_pack/`."""

from __future__ import annotations

from pathlib import Path


def pack_path() -> Path:
    """Folder of the sealed pack."""
    return Path(__file__).parent / "pack"


def imagery_pack_path() -> Path:
    """Folder of the sealed imagery pack, which is drawn by the other."""
    return Path(__file__).parent / "imagery_pack"
