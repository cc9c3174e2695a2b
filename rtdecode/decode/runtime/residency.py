"""Which networks lie on the device when not all of them fit: those in use, and what fits beside them.

Networks of a picture are used in the same order again and again. To make room, that one goes back to the host's memory
first whose turn is furthest away in this order, as far as it has been seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Residency:
    """Moves networks to the device when they are used, and back when another one needs the room.

    No more lies there at once than the budget, or than the one network in use where that alone is larger.

    Parameters
    ----------
    budget : int
        Bytes of weights on the device.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._known: dict[str, tuple[int, Callable[[bool], None]]] = {}
        self._order: list[str] = []
        self._resident: set[str] = set()

    @property
    def resident(self) -> int:
        """Bytes on the device."""
        return sum(self._known[name][0] for name in self._resident)

    def add(self, name: str, size: int, move: Callable[[bool], None]) -> None:
        """Tell of a network, which lies in the host's memory.

        Parameters
        ----------
        name : str
        size : int
            Bytes of its weights.
        move : callable
            Is told whether to bring them to the device or back.
        """
        self._known[name] = size, move

    def use(self, name: str) -> None:
        """Have a network on the device, and make room for it before."""
        if name in self._resident:
            return
        if name not in self._order:
            self._order.append(name)
        size, move = self._known[name]
        while self._resident and self.resident + size > self._budget:
            last = max(self._resident, key=lambda one: self._distance(name, one))
            self._known[last][1](False)
            self._resident.remove(last)
        move(True)
        self._resident.add(name)
        _log.debug("%s is on the device: %s bytes of weights there", name, self.resident)

    def _distance(self, now: str, then: str) -> int:
        return (self._order.index(then) - self._order.index(now)) % len(self._order)
