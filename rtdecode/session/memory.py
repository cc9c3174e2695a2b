"""Memory that a session holds for longer than it needs it."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps up to 64 MiB for each thread otherwise."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
