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

    No fast-math: the order of sums would then depend on whether the code was compiled now or read from the cache,
    and a session could not be repeated to the last bit.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba finds no writable cache folder
        return cast(Function, numba.njit(nogil=True)(function))
