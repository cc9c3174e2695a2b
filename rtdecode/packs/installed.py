"""Families of decoders that are installed, by the `kind` that a pack names."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from rtdecode.errors import EngineError

GROUP = "rtdecode.families"
"""Entry points: the name is the `kind` in ``pack.toml``, the object is a `rtdecode.decode.families.family.Family`."""


def installed_family(kind: str, *, source: str) -> Any:
    """Load a family.

    Raises
    ------
    EngineError
        None of that kind is installed; `source` says where the kind stands.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in known:
        raise EngineError(f"{source}: expected one of {', '.join(sorted(known))}, got {kind}")
    return known[kind].load()
