"""Sizes that stand beside weights: a ``config.json`` in their folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.importing.weight_files import locate
from rtdecode.errors import CheckpointError

CONFIG = "config.json"


def config_of(weights: Path, published: Mapping[str, Any], network: type[Any] | None = None) -> dict[str, Any]:
    """Read the sizes of a network.

    Parameters
    ----------
    weights : Path
    published : mapping
        What holds where there is no ``config.json`` beside the weights.
    network : type, optional
        Class that takes the sizes: what it does not take is left out (the file also says who wrote it). Without, what
        is not among the published sizes is left out, and what is missing is as published.

    Raises
    ------
    CheckpointError
        The file is no JSON object.
    """
    path = weights.parent / CONFIG
    if not path.is_file():
        return dict(published)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON object of sizes ({error})") from None
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: expected a JSON object of sizes, got {type(said).__name__}")
    if network is None:
        return {name: said.get(name, value) for name, value in published.items()}
    taken = inspect.signature(network.__init__).parameters.keys() - {"self"}
    return {name: value for name, value in said.items() if name in taken}


def weights_in(folder: str, *names: str) -> Path:
    """Find the first of some files in a folder of this machine or a repository of the hub, and its ``config.json``.

    Parameters
    ----------
    folder : str
        A path, or ``owner/repository`` on the Hugging Face hub, either with folders below it.
    names : str
        Names of files, the one that is preferred first.

    Raises
    ------
    CheckpointError
        None of them is to be had.
    """
    here = Path(folder).expanduser()
    if here.is_dir():
        found = [here / name for name in names if (here / name).is_file()]
        if not found:
            raise CheckpointError(f"{folder}: expected {' or '.join(names)}, found neither")
        return found[0]
    owner, repository, *below = folder.split("/")
    inside = "/".join([*below, ""])
    locate(f"{owner}/{repository}:{inside}{CONFIG}")
    *preferred, last = names
    for name in preferred:
        try:
            return locate(f"{owner}/{repository}:{inside}{name}")
        except CheckpointError:
            continue
    return locate(f"{owner}/{repository}:{inside}{last}")
