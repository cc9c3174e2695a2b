"""The real scanner files that several tests read."""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

XTC_SETTINGS = "[scanner]\nexport_dir = 'x'\nt_r_s = 1.2\naffine = [[-3, 0, 0, 1], [0, -3, 0, 2], [0, 0, 4, 3]]\n"


@functools.cache
def manifest(shared: Path) -> dict[str, Any]:
    entries = json.loads((shared / "data" / "MANIFEST.json").read_text())["series"]
    return {entry["id"]: entry for entry in entries}


def series_ids(metafunc: pytest.Metafunc, converted: bool | None = None) -> list[str]:
    """Names of all series, or of those with or without a conversion, each to be a test of its own.

    One empty name where the files are not there, so that the test can say so.
    """
    folder = Path(os.environ.get("RTDECODE_SHARED", metafunc.config.rootpath.parent / "shared"))
    if not (folder / "data" / "MANIFEST.json").is_file():
        return [""]
    entries = manifest(folder)
    return [name for name, entry in entries.items() if converted in (None, bool(entry.get("reference")))]


def source_files(shared: Path, entry: dict[str, Any]) -> list[Path]:
    """Files of a series as they lie, packed or not."""
    return [shared / "data" / file["path"] for file in entry["files"]]


def unpack(shared: Path, name: str, folder: Path) -> list[tuple[Path, int | None]]:
    """Write the files of a series as the scanner did; return each with the volume it is."""
    out = []
    for file in manifest(shared)[name]["files"]:
        raw = (shared / "data" / file["path"]).read_bytes()
        path = folder / (file.get("raw_name") or Path(file["path"]).name)
        packed = file["path"].endswith(".gz") and not file["path"].endswith(".nii.gz")
        path.write_bytes(gzip.decompress(raw) if packed else raw)
        out.append((path, file.get("volume")))
    return out
