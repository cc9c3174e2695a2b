"""Counts of things by name, each counted once, in bounded memory."""

from __future__ import annotations

from collections import Counter

REMEMBERED = 2000


class Counted:
    """How many names there are of each kind.

    A name that is told again, as another kind, counts as that one: for the latest `REMEMBERED` names. Those before
    stay counted as they were.

    Attributes
    ----------
    totals : Counter
        Names by kind.
    """

    def __init__(self) -> None:
        self.totals: Counter[str | bool] = Counter()
        self._latest: dict[str, str | bool] = {}

    def put(self, name: str, kind: str | bool) -> bool:
        """Count a name; return whether it is a new one."""
        before = self._latest.pop(name, None)
        if before is not None:
            self.totals[before] -= 1
        elif len(self._latest) >= REMEMBERED:
            del self._latest[next(iter(self._latest))]
        self._latest[name] = kind
        self.totals[kind] += 1
        return before is None
