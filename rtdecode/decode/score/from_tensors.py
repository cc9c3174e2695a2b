"""Dataclasses of arrays as a bundle keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from numpy.typing import NDArray

from rtdecode.errors import BundleError

T = TypeVar("T")


def from_tensors(kind: type[T], tensors: Mapping[str, NDArray[Any]], *, part: str) -> T:
    """Make a dataclass of the tensors that its fields are named after.

    Raises
    ------
    BundleError
        One is missing; `part` says of what.
    """
    names = [spec.name for spec in fields(kind)]  # type: ignore[arg-type]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise BundleError(f"{part}: missing {', '.join(missing)}; calibrate again")
    return kind(**{name: tensors[name] for name in names})
