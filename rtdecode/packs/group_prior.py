"""Group priors: what earlier participants taught of a new one, in one sealed file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rtdecode.errors import BundleError
from rtdecode.typed import Table, checked

GROUP_PRIOR_SCHEMA = "rtdecode.group-prior/3"
TENSORS = ("origin_mm", "mean", "spectrum", "covariance", "basis", "token_mean", "group")


class GroupPriorHead(Table, frozen=True, kw_only=True):
    """What a group prior is of.

    Attributes
    ----------
    pack, pack_name : str
        Identity and name of the pack whose tokens describe pictures.
    space : str
        Common space of the participants' places.
    cell_mm : float
        Edge of the cells of `mean`.
    people : int
        From how many it was learned.
    trials : int
        Of all of them together.
    constant_variance : float
        Of people's responses to the average picture around the expected one.
    """

    pack: str
    pack_name: str
    space: str
    cell_mm: float
    people: int
    trials: int
    constant_variance: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupPriorFile:
    """A verified group prior.

    Attributes
    ----------
    identity : str
        SHA-256 of its content.
    head : GroupPriorHead
    tensors : mapping of str to array
        `origin_mm` (3,), `mean` (k + 1, x, y, z), `spectrum` (k,), `covariance` (k + 1, k + 1), and the space of
        pictures: `basis` (k, m), `token_mean` (m,), and the token `group` of each component (k,).
    """

    identity: str
    head: GroupPriorHead
    tensors: Mapping[str, NDArray[Any]]


def save_group_prior(path: Path, head: GroupPriorHead, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Write a group prior; the file is there whole or not at all. Return its identity."""
    told = json.dumps({name: getattr(head, name) for name in head.__struct_fields__}, sort_keys=True)
    identity = _digest(told, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(save(dict(tensors), metadata={"schema": GROUP_PRIOR_SCHEMA, "head": told, "identity": identity}))
    draft.replace(path)
    return identity


def open_group_prior(path: Path) -> GroupPriorFile:
    """Open a group prior.

    Raises
    ------
    BundleError
        It is missing, of another schema, or its content is not what was sealed.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            told = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: expected a group prior: {error}; make one with rtdecode prior learn") from None
    schema = told.get("schema")
    if schema != GROUP_PRIOR_SCHEMA:
        raise BundleError(f"{path}: expected schema {GROUP_PRIOR_SCHEMA}, got {schema}; learn it again")
    head, identity = told.get("head", ""), told.get("identity", "")
    if sorted(tensors) != sorted(TENSORS) or identity != _digest(head, tensors):
        raise BundleError(f"{path}: content differs from what was sealed; restore the file, or learn it again")
    raw = json.loads(head)
    return GroupPriorFile(
        identity=identity,
        head=checked(raw, GroupPriorHead, source=str(path), error=BundleError),
        tensors=tensors,
    )


def _digest(head: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
