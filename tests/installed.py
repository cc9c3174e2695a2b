"""Installs a small package for a test as pip would: its modules on the path, its entry points beside them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def install(monkeypatch: pytest.MonkeyPatch, site: Path, package: Path) -> None:
    """Let `importlib.metadata` find a package with the entry points that its ``pyproject.toml`` tells.

    Parameters
    ----------
    monkeypatch
        Takes it off the path again.
    site : Path
        Empty folder for what pip writes beside a package.
    package : Path
        Folder of the package, with its modules at the top.
    """
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.syspath_prepend(str(site))
