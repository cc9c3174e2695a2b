"""Memory that a process holds for longer than it needs it."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Return what was freed to the system.

    glibc keeps up to 64 MiB for each thread otherwise, and gigabytes of weights where something small lies behind them.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
