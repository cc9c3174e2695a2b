"""What readers remember from one file of a series to the next."""

from __future__ import annotations

from typing import TypeVar

MOST_SERIES = 16

K = TypeVar("K")
V = TypeVar("V")


class Latest(dict[K, V]):
    """What is known of the latest `MOST_SERIES` series: one more takes the place of the oldest."""

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self and len(self) >= MOST_SERIES:
            del self[next(iter(self))]
        super().__setitem__(key, value)
