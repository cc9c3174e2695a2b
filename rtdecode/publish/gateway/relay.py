"""What the gateway knows of the stream, and how it asks the daemon; used on one event loop."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from rtdecode import client as wire
from rtdecode.errors import ProtocolError
from rtdecode.publish import asking
from rtdecode.publish.messages import TOPICS as ALL

TOPICS = tuple(topic for topic in ALL if topic not in ("beta", "embedding"))
"""All but the large arrays."""
KEPT = 2000
KEPT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """One message, ready for JSON, by the number that this gateway gave it (from 1)."""

    number: int
    topic: str
    fields: dict[str, Any]
    size: int


class Relay:
    """Keeps the latest messages, and asks for others.

    Parameters
    ----------
    client : AsyncClient

    Attributes
    ----------
    silent : bool
        The daemon has told nothing for a second.
    """

    def __init__(self, client: wire.AsyncClient) -> None:
        self._client = client
        self._kept: deque[Told] = deque()
        self._bytes = 0
        self._number = 0
        self._came = asyncio.Event()

    @property
    def silent(self) -> bool:
        """Whether the daemon has told nothing for a second."""
        return self._client.silent

    @property
    def number(self) -> int:
        """Of the latest message; 0 before the first."""
        return self._number

    async def follow(self) -> None:
        """Take messages as they come, for ever."""
        async for message in self._client.messages():
            self._number += 1
            fields = jsonable(message)
            size = sum(len(value) for value in fields.values() if isinstance(value, str)) + 500
            self._kept.append(Told(self._number, wire.topic_of(message), fields, size))
            self._bytes += size
            while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
                self._bytes -= self._kept.popleft().size
            self._came.set()
            self._came = asyncio.Event()

    def after(self, number: int, topics: tuple[str, ...]) -> list[Told]:
        """Return the messages of these topics after that number, as far as they are kept."""
        found = []
        for told in reversed(self._kept):
            if told.number <= number:
                break
            if told.topic in topics:
                found.append(told)
        return found[::-1]

    async def wait(self, number: int, topics: tuple[str, ...], timeout_s: float | None) -> list[Told]:
        """Do as `after`, but wait for the first one."""
        loop = asyncio.get_running_loop()
        end = math.inf if timeout_s is None else loop.time() + timeout_s
        while True:
            came = self._came
            found = self.after(number, topics)
            left = end - loop.time()
            if found or left <= 0:
                return found
            try:
                await asyncio.wait_for(came.wait(), None if left == math.inf else left)
            except TimeoutError:
                continue

    async def ask(self, kind: object, fields: Mapping[str, Any], *, words: bool = False) -> dict[str, Any]:
        """Pass a request on, as `rtdecode.publish.asking.ask` does."""
        return await asking.ask(self._client.request, kind, fields, words=words)


def chosen(names: str) -> tuple[str, ...]:
    """Return the topics of a list with commas; all of the gateway's where it is empty.

    Raises
    ------
    ProtocolError
        One does not exist here.
    """
    topics = tuple(name for name in names.split(",") if name)
    for topic in topics:
        if topic not in TOPICS:
            raise ProtocolError(f"topics: expected some of {', '.join(TOPICS)}, got {topic[:40]!r}")
    return topics or TOPICS


def jsonable(message: wire.Message) -> dict[str, Any]:
    """Return a message as JSON holds it: what is no number becomes null, bytes base64, arrays maps as on the wire."""
    told = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    if isinstance(message, wire.Other):
        told |= told.pop("fields")
    return {"topic": wire.topic_of(message), **{name: _plain(value) for name, value in told.items()}}


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return base64.b64encode(value).decode()
        case wire.Array():
            return {"dtype": value.dtype, "shape": list(value.shape), "data": _plain(value.data)}
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case None | bool() | int() | str():
            return value
        case _ if hasattr(value, "tolist"):
            return _plain(value.tolist())
    return str(value)
