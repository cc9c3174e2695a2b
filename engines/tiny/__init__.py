"""The tiny engine pack: its recipe, and the sealed result in `pack/`."""

from __future__ import annotations

from pathlib import Path


def pack_path() -> Path:
    """Folder of the sealed pack."""
    return Path(__file__).parent / "pack"
