"""Sealed folders: what is in them is what their manifest says.

A sealed folder holds a `manifest.json` with the SHA-256 of each of its files and the schema it follows. It is
written under a temporary name and renamed, so that a half-written one is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from rtdecode.errors import BundleError
from rtdecode.typed import Table, checked

MANIFEST = "manifest.json"
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
"""Bits of the exponent, which are all set in NaN and inf, by the type's name in a safetensors file."""
_AT_ONCE = 1 << 22


class _Manifest(Table, frozen=True, kw_only=True):
    schema: str
    files: dict[str, str]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_target(target: Path) -> None:
    """Check that a sealed folder can be put there: nothing but one of before, or an empty folder, is replaced.

    Raises
    ------
    BundleError
        A file, or a folder with other content.
    """
    if target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir())):
        return
    if target.exists():
        raise BundleError(
            f"{target}: expected a new folder, or a sealed one (with {MANIFEST}) to replace, got "
            f"{'one that holds other files' if target.is_dir() else 'a file'}; name another"
        )


def seal(target: Path, schema: str, write: Callable[[Path], None]) -> str:
    """Write a sealed folder.

    Parameters
    ----------
    target : Path
        The folder to make; a sealed one is replaced.
    schema : str
        Name and version of what it holds.
    write : callable
        Is given an empty folder and fills it.

    Returns
    -------
    str
        SHA-256 of the manifest: the identity of the folder's content.

    Raises
    ------
    BundleError
        Something else is there, see `check_target`, or a tensor holds a number that is none, see `check_numbers`.
        Nothing is written then.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        write(draft)
        check_numbers(draft)
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        manifest = {
            "schema": schema,
            "files": {p.relative_to(draft).as_posix(): _digest(p) for p in files},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        identity = _digest(draft / MANIFEST)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return identity


def check_numbers(folder: Path) -> None:
    """Check that every number in the safetensors files of a folder is one: weights of a training that diverged are not.

    A file that is none of its kind is left to what reads it.

    Raises
    ------
    BundleError
        A tensor holds NaN or inf; it is named.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError):
            continue
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, said in header.items():
            if said["dtype"] not in _EXPONENTS:
                continue
            dtype, exponent = _EXPONENTS[said["dtype"]]
            begin, end = said["data_offsets"]
            count = (end - begin) // np.dtype(dtype).itemsize
            for first in range(0, count, _AT_ONCE):
                block = np.fromfile(
                    path,
                    dtype,
                    min(_AT_ONCE, count - first),
                    offset=8 + size + begin + first * np.dtype(dtype).itemsize,
                )
                if np.any(block & exponent == exponent):
                    raise BundleError(
                        f"{path.relative_to(folder)}: {name} holds NaN or inf: the training that made it diverged, or "
                        "its numbers are too large for the precision; take another checkpoint or precision"
                    )


def listed(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a sealed folder that was verified, as its manifest says."""
    manifest = folder / MANIFEST
    raw = json.loads(manifest.read_text(encoding="utf-8"))
    return checked(raw, _Manifest, source=str(manifest), error=BundleError).files


def verify(folder: Path, schema: str) -> str:
    """Check every file of a sealed folder and return its identity.

    Raises
    ------
    BundleError
        The folder is missing, of another schema, or a file is absent, altered or not listed.
    """
    manifest_path = folder / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder}: expected a sealed folder with {MANIFEST}, found none") from None
    except OSError as error:  # a file, a name that is too long, no permission
        raise BundleError(f"{folder}: expected a sealed folder with {MANIFEST}: {error.strerror}") from None
    except ValueError as error:  # not JSON, not UTF-8
        raise BundleError(f"{manifest_path}: not valid JSON: {error}") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != schema:
        same_kind = str(found).partition("/")[0] == schema.partition("/")[0]
        hint = "; another version of rtdecode made it: calibrate, train or convert again" if same_kind else ""
        raise BundleError(f"{folder}: expected schema {schema}, got {found}{hint}")
    files = checked(manifest, _Manifest, source=str(manifest_path), error=BundleError).files
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    present = {name for name in present if not name.startswith("plans/") and "__pycache__" not in name}
    if present != files.keys():
        raise BundleError(
            f"{folder}: files differ from the manifest: missing {sorted(files.keys() - present)}, "
            f"not listed {sorted(present - files.keys())}"
        )
    for name, digest in files.items():
        if _digest(folder / name) != digest:
            raise BundleError(f"{folder / name}: content differs from the manifest; restore or rebuild the folder")
    return _digest(manifest_path)


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Load a safetensors file.

    Raises
    ------
    BundleError
        It cannot be read.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file: {error}") from None
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}
