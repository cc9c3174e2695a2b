"""What is wrong, for the top of the page: faults and left-out data, grouped, until acknowledged or mended."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rtdecode import client as wire
from rtdecode.publish.display.counted import Counted

EARLIER = 30
GROUPS = 100
TEXT = 400  # characters of a text that somebody else wrote
SKIPPED = ("skipped", "volumes")
INVALID = ("skipped", "trials")
_REMEDY = {
    SKIPPED: "They count as missing. Many in a row: look at the scanner's export.",
    INVALID: "The run goes on. Many in a row: look at the announced onsets and at the volumes left out.",
}
_TITLE = {SKIPPED: "files left out", INVALID: "trials without a result"}


def text(value: object) -> str:
    """Return what somebody else wrote as a text of bearable length."""
    written = "" if value is None else str(value)
    return written if len(written) <= TEXT else f"{written[:TEXT]} …"


@dataclass(slots=True)
class _Group:
    """What tells of one trouble; `told` counts it, `known` how much of it was acknowledged."""

    number: int
    kind: str
    title: str
    reason: str = ""
    remedy: str = ""
    degraded: str = ""
    first_s: float = 0.0
    latest_s: float = 0.0
    told: int = 0
    known: int = 0
    over: bool = False

    def shown(self) -> dict[str, Any]:
        """Return the group, ready for JSON."""
        return {
            "number": self.number,
            "kind": self.kind,
            "title": self.title,
            "reason": self.reason,
            "remedy": self.remedy,
            "degraded": self.degraded,
            "first_s": self.first_s,
            "latest_s": self.latest_s,
            "count": self.told,
            "over": self.over,
        }


@dataclass(slots=True)
class Notices:
    """Troubles by what they are.

    Faults of one part and kind are one group; those without a kind are grouped by part and reason, whatever numbers
    it holds. Files left out are one group, trials without a result another.
    """

    _groups: dict[tuple[str, ...], _Group] = field(default_factory=dict)
    _mended: deque[_Group] = field(default_factory=lambda: deque(maxlen=EARLIER))
    _invalid: Counted = field(default_factory=Counted)
    _numbers: int = 0

    def fault(self, message: wire.Fault) -> None:
        """Take a fault; one that is over closes all of its part and kind."""
        part, kind, reason = text(message.part), text(message.kind), text(message.reason)
        if message.over:
            for key in [key for key in self._groups if key[:3] == ("fault", part, kind)]:
                group = self._groups.pop(key)
                group.over, group.latest_s = True, float(message.t_published)
                self._mended.appendleft(group)
            return
        key = ("fault", part, kind, "" if kind else re.sub(r"\d+", "#", reason))
        group = self._add(key, "fault", part, reason, float(message.t_published))
        group.remedy, group.degraded = text(message.remedy), text(message.degraded)

    def skipped(self, message: wire.Skipped) -> None:
        """Take a volume or file that could not be used."""
        where = "" if message.volume is None else f", volume {message.volume}"
        reason = f"run {message.run}{where}: {text(message.reason)}"
        self._add(SKIPPED, "skipped", _TITLE[SKIPPED], reason, float(message.t_published)).remedy = _REMEDY[SKIPPED]

    def invalid(self, message: wire.Score | wire.Beta) -> None:
        """Take a trial without a result; each is counted once, though its beta and its score tell of it."""
        trial = text(message.trial)
        if not self._invalid.put(trial, True):
            return
        reason = f"trial {trial}: {text(message.invalid)}"
        self._add(INVALID, "skipped", _TITLE[INVALID], reason, float(message.t_published)).remedy = _REMEDY[INVALID]

    def acknowledge(self, number: int, count: int) -> bool:
        """Take `count` reports of a group as known; it comes back with the next. False if there is no such group."""
        for group in self._groups.values():
            if group.number == number:
                group.known = max(group.known, min(count, group.told))
                return True
        return False

    def is_open(self, part: str, kind: str) -> bool:
        """Whether a fault of this part and kind is not over, acknowledged or not."""
        return any(key[:3] == ("fault", part, kind) for key in self._groups)

    @property
    def alarming(self) -> bool:
        """Whether there is a fault that nobody has acknowledged."""
        return any(group.kind == "fault" and group.told > group.known for group in self._groups.values())

    def state(self) -> dict[str, Any]:
        """Return what is new (faults first, then the latest first) and what is known or over."""
        groups = sorted(self._groups.values(), key=lambda g: (g.kind != "fault", -g.latest_s, -g.number))
        known = [group for group in groups if group.told <= group.known]
        return {
            "new": [group.shown() for group in groups if group.told > group.known],
            "earlier": _shown([*known, *self._mended]),
        }

    def _add(self, key: tuple[str, ...], kind: str, title: str, reason: str, at_s: float) -> _Group:
        group = self._groups.get(key)
        if group is None:
            while len(self._groups) >= GROUPS:
                self._mended.appendleft(self._groups.pop(next(iter(self._groups))))
            self._numbers += 1
            group = self._groups[key] = _Group(self._numbers, kind, title, first_s=at_s)
        group.reason, group.latest_s = reason, at_s
        group.told += 1
        return group


def _shown(groups: Iterable[_Group]) -> list[dict[str, Any]]:
    return [group.shown() for group in groups][:EARLIER]
