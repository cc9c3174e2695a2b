"""The two sealed folders the runtime reads: EnginePack and ParticipantBundle.

A sealed folder holds a `manifest.json` with the SHA-256 of each of its files and the schema it follows. It is
written under a temporary name and renamed, so that a half-written one is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from rtdecode.errors import BundleError

MANIFEST = "manifest.json"
PACK_SCHEMA = "rtdecode.engine-pack/1"
PARTICIPANT_SCHEMA = "rtdecode.participant-bundle/1"
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
"""Bits of the exponent, which are all set in NaN and inf, by the type's name in a safetensors file."""
_AT_ONCE = 1 << 22


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(target: Path, schema: str, write: Callable[[Path], None]) -> str:
    """Write a sealed folder.

    Parameters
    ----------
    target : Path
        The folder to make; an existing one is replaced.
    schema : str
        One of the schema names of this module.
    write : callable
        Is given an empty folder and fills it.

    Returns
    -------
    str
        SHA-256 of the manifest: the identity of the folder's content.

    Raises
    ------
    BundleError
        A tensor holds a number that is none; see `check_numbers`. Nothing is written then.
    """
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
        raise BundleError(f"{folder}: expected schema {schema}, got {found}")
    listed: Mapping[str, str] = manifest["files"]
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    present = {name for name in present if not name.startswith("plans/") and "__pycache__" not in name}
    if present != listed.keys():
        raise BundleError(
            f"{folder}: files differ from the manifest: missing {sorted(listed.keys() - present)}, "
            f"not listed {sorted(present - listed.keys())}"
        )
    for name, digest in listed.items():
        if _digest(folder / name) != digest:
            raise BundleError(f"{folder / name}: content differs from the manifest; restore or rebuild the folder")
    return _digest(manifest_path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnginePack:
    """A verified engine pack.

    Attributes
    ----------
    folder : Path
    identity : str
        SHA-256 of its manifest.
    config : mapping
        Content of ``pack.toml``.
    """

    folder: Path
    identity: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the pack."""
        return str(self.config["name"])

    def digest(self, filename: str) -> str:
        """SHA-256 of one of its files, as the manifest says; empty if there is none of that name."""
        manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["files"].get(filename, ""))

    def tensors(self, filename: str) -> dict[str, NDArray[Any]]:
        """Load one safetensors file of the pack."""
        return _tensors(self.folder / filename)


def open_pack(name_or_folder: str) -> EnginePack:
    """Open an installed pack by name, or any pack by its folder.

    Raises
    ------
    BundleError
        There is none, or its content is not what its manifest says.
    """
    known = {point.name: point for point in entry_points(group="rtdecode.packs")}
    folder = Path(known[name_or_folder].load()()) if name_or_folder in known else Path(name_or_folder)
    if not folder.is_dir():
        raise BundleError(
            f"engine pack {name_or_folder!r}: expected a folder or an installed pack ({', '.join(sorted(known))})"
        )
    identity = verify(folder, PACK_SCHEMA)
    config = tomllib.loads((folder / "pack.toml").read_text(encoding="utf-8"))
    return EnginePack(folder=folder, identity=identity, config=MappingProxyType(config))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParticipantBundle:
    """A verified participant bundle.

    Its folder holds ``adapter.safetensors``, ``evidence.safetensors``, ``mask.nii.gz``, ``reference.nii.gz``,
    ``learning_curve.json`` and ``provenance.json``.

    Attributes
    ----------
    folder : Path
    identity : str
        SHA-256 of its manifest.
    adapter : mapping of str to array
        Tensors of the ridge adapter; see `calibration`.
    evidence : mapping of str to array
        Tensors of the evidence model; see `calibration`.
    provenance : mapping
        Pack identity, trials, penalties and held-out figures of the calibration.
    """

    folder: Path
    identity: str
    adapter: Mapping[str, NDArray[Any]]
    evidence: Mapping[str, NDArray[Any]]
    provenance: Mapping[str, Any]


def open_participant(folder: Path) -> ParticipantBundle:
    """Open a participant bundle.

    Raises
    ------
    BundleError
        It is missing, its content is not what its manifest says, or a tensor holds a number that is none.
    """
    identity = verify(folder, PARTICIPANT_SCHEMA)
    check_numbers(folder)
    return ParticipantBundle(
        folder=folder,
        identity=identity,
        adapter=MappingProxyType(_tensors(folder / "adapter.safetensors")),
        evidence=MappingProxyType(_tensors(folder / "evidence.safetensors")),
        provenance=MappingProxyType(json.loads((folder / "provenance.json").read_text(encoding="utf-8"))),
    )


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not a readable safetensors file: {error}") from None
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}
