"""Finding and reading published files; nothing is unpickled beyond tensors and plain containers."""

from __future__ import annotations

import codecs
import re
import zipfile
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from engines.importing.sharded_files import read_folder
from rtdecode.errors import CheckpointError

_FILE = re.compile(r"(?P<dataset>datasets/)?(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:]+)")
_FOLDER = re.compile(r"[\w.-]+/[\w.-]+")


def locate(name: str) -> Path:
    """Find a file or folder on this machine, or else on the Hugging Face hub.

    Parameters
    ----------
    name : str
        A path; or ``owner/repository:file``, with ``datasets/`` before it for a data set; or ``owner/repository`` for
        all of a repository but its other weight formats.

    Raises
    ------
    CheckpointError
        It is neither here nor to be had.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        if found := _FILE.fullmatch(name):
            kind = "dataset" if found["dataset"] else "model"
            return Path(hf_hub_download(found["repo"], found["file"], repo_type=kind))
        if _FOLDER.fullmatch(name):
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such path here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}): download it where there is a network and give its path"
        ) from None
    raise CheckpointError(
        f"{name}: no such path; expected a path, [datasets/]owner/repository:file or owner/repository"
    )


_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy's arrays were pickled from before and since version 2."""


def _array_parts() -> list[Any]:
    """Return what a pickle may name so that numeric arrays of numpy are read, and nothing else of numpy is."""
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    multiarray: Any = import_module(_NUMPY_MODULES[1] if hasattr(np, "_core") else _NUMPY_MODULES[0])
    names = [(module, name) for module in _NUMPY_MODULES for name in ("_reconstruct", "scalar")]
    made = [(getattr(multiarray, name), f"{module}.{name}") for module, name in names]
    return [*made, np.ndarray, np.dtype, *kinds, codecs.encode]


def read(path: Path, *, arrays: bool = False) -> dict[str, Any]:
    """Read a checkpoint: a safetensors file, a torch file of tensors and plain containers, or a folder of shards.

    Parameters
    ----------
    path : Path
    arrays : bool
        Whether it may also hold numpy's arrays.

    Raises
    ------
    CheckpointError
        It needs code to be read or is damaged; or, of a folder, see `read_folder`.
    """
    if path.is_dir():
        return read_folder(path, read)
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = load_file(path)
            return tensors
        with torch.serialization.safe_globals(_array_parts() if arrays else []):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(
            f"{path}: holds more than tensors, and reading that would run code of the file ({reason}). If you trust "
            'its origin, convert it once, on a machine without secrets or network: python -c "import torch; c = '
            f"torch.load('{path.name}', weights_only=False); torch.save({{k: c[k] for k in c if 'state_dict' in k}}, "
            "'plain.pth')\"; import plain.pth"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read, download it again: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping of names, got {type(content).__name__}")
    return content
