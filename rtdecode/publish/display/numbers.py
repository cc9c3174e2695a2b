"""Numbers that somebody else wrote."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> float | None:
    """Return a number of the stream, None where it is none."""
    return None if value is None or not math.isfinite(value) else round(float(value), 5)


def number(value: Any) -> float:
    """Return a number without which a message has no meaning.

    Raises
    ------
    ValueError
        It is not finite.
    """
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"expected a finite number, got {value!r}")
    return found
