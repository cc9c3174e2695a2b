"""The worked examples of the how-tos, installed as packages are: with entry points of their own."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def changes(diff: str) -> dict[str, list[tuple[str, str]]]:
    """Read a unified diff of the examples: by file, each stretch of text that is there before and what it becomes."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in (EXAMPLES / diff).read_text().split("--- a/rtdecode/")[1:]:
        head, *hunks = re.split(r"^@@.*@@\n", part, flags=re.MULTILINE)
        lines = [hunk.splitlines(keepends=True) for hunk in hunks]
        found[head.split("\n")[0]] = [
            ("".join(line[1:] for line in hunk if line[0] != "+"), "".join(line[1:] for line in hunk if line[0] != "-"))
            for hunk in lines
        ]
    return found


def install(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Lay an example into a folder of installed packages, for this process and those it starts; import it."""
    source = EXAMPLES / example
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    (package,) = [path.parent for path in source.glob("*/__init__.py")]
    shutil.copytree(package, folder / package.name)
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {where}" for name, where in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delitem(__import__("sys").modules, package.name, raising=False)
    return importlib.import_module(package.name)
