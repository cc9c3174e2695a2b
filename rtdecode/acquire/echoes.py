"""Echoes of a series, and what its instance numbers count: told by all of its files, never by one alone.

Siemens counts instances across the echoes of a series, and acquisitions for volumes; but the acquisition number may as
well lag, or start again, in a series of one echo. Files that do not number their echoes have echo times.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from rtdecode.acquire.latest import Latest
from rtdecode.acquire.stored import Identity

_SAME_MS = 1  # decimals
_MOST = 64


@dataclass(slots=True)
class _Seen:
    numbers: set[int] = field(default_factory=set)
    times_ms: set[float] = field(default_factory=set)


class Echoes:
    """What the files of the latest series said of their echoes."""

    def __init__(self) -> None:
        self._seen: Latest[str, _Seen] = Latest()

    def learn(self, identity: Identity) -> None:
        """Take note of a file."""
        seen = self._seen.get(identity.series_uid)
        if seen is None:
            seen = self._seen[identity.series_uid] = _Seen()
        time_ms = _time(identity.echo_ms)
        if identity.echo is not None and len(seen.numbers) < _MOST:
            seen.numbers.add(identity.echo)
        if time_ms is not None and len(seen.times_ms) < _MOST:
            seen.times_ms.add(time_ms)

    def placed(self, identity: Identity) -> Identity:
        """Return an identity with its echo and the number of its volume, as the series tells them."""
        seen = self._seen.get(identity.series_uid)
        if seen is None:
            return identity
        numbers, times_ms, time_ms = seen.numbers, sorted(seen.times_ms), _time(identity.echo_ms)
        if time_ms is not None and len(times_ms) > max(len(numbers), 1):
            identity = dataclasses.replace(identity, echo=1 + sum(other < time_ms for other in times_ms))
            numbers = set(range(1, len(times_ms) + 1))
        instance = _volume(identity, numbers)
        return identity if instance == identity.instance else dataclasses.replace(identity, instance=instance)


def _time(time_ms: float | None) -> float | None:
    return round(time_ms, _SAME_MS) if time_ms is not None and time_ms > 0 else None


def _volume(identity: Identity, numbers: set[int]) -> int:
    """Return the number of the volume: instance = (volume - 1) x echoes + echo, if there are several echoes."""
    instance, acquisition, echo = identity.instance, identity.acquisition, identity.echo or 1
    echoes = max(identity.echoes or 1, max(numbers, default=1) if len(numbers) > 1 else 1)
    if echoes < 2 or acquisition is None or not acquisition < instance:
        return instance
    before = instance - echo
    if before % echoes == 0:
        return before // echoes + 1
    whole = before == 0 if acquisition == 1 else before % (acquisition - 1) == 0  # echoes that were not seen yet
    return acquisition if whole else instance
