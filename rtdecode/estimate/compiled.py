"""Compilation of the inner loops.

Machine code is cached beside the source or, where site-packages is read-only, in the user's cache folder;
where neither can be written it is compiled anew in each process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` on its first call.

    Sums are reassociated (for vectorisation) but NaN keeps its meaning, so results are the same in every
    process of one machine and may differ in the last bit between machines.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba finds no writable cache folder
        return cast(Function, numba.njit(**options)(function))
