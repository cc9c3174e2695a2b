"""Lines of text over TCP, for programs that can send and read those: Presentation, E-Prime.

A line is a request, its fields after it as NAME=VALUE; quotes hold a value with spaces together::

    event kind=trial run=1 trial=t1 onset_s=12.5 duration_s=2 stimulus=cat07
    listen score feedback
    last score
    ping

It is answered by one line that begins with ``ok`` or ``error``. After ``listen`` each message of these topics comes as
a line as well: its topic, and all its fields that are a text, a number or a truth value (1 or 0).
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from typing import Any

from rtdecode.errors import ProtocolError
from rtdecode.publish.gateway.relay import Relay, Told, chosen

LINE_BYTES = 4096
CONNECTIONS = 16
STALL_S = 10.0


class Lines:
    """The text line server.

    Parameters
    ----------
    relay : Relay

    Attributes
    ----------
    refused : int
        Lines so far that were answered by an error.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._open = 0
        self.refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        self._open += 1
        listening: asyncio.Task[None] | None = None
        try:
            if self._open > CONNECTIONS:
                await _say(writer, f"error expected at most {CONNECTIONS} connections")
                return
            while line := await self._line(reader, writer):
                words = _words(line)
                if words[:1] == ["listen"]:
                    if listening is not None:
                        listening.cancel()
                    try:
                        topics = chosen(",".join(words[1:]))
                    except ProtocolError as error:
                        self.refused += 1
                        await _say(writer, f"error {error}")
                        continue
                    await _say(writer, "ok")
                    listening = asyncio.ensure_future(self._tell(writer, topics))
                else:
                    await _say(writer, await self._answer(words))
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self._open -= 1
            if listening is not None:
                listening.cancel()
            writer.close()

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Return the next line; empty at the end, and where no line can be read."""
        while True:
            try:
                line = (await reader.readuntil(b"\n")).decode()
            except asyncio.IncompleteReadError:
                return ""
            except asyncio.LimitOverrunError:
                self.refused += 1
                await _say(writer, f"error expected a line of at most {LINE_BYTES} bytes")
                return ""
            except UnicodeDecodeError:
                self.refused += 1
                await _say(writer, "error expected a line of UTF-8")
                continue
            if line.strip():
                return line

    async def _answer(self, words: list[str]) -> str:
        if words[:1] == ["last"]:
            try:
                found = self._relay.after(0, chosen(",".join(words[1:])))
            except ProtocolError as error:
                self.refused += 1
                return f"error {error}"
            return f"ok {written(found[-1])}" if found else "ok none"
        fields = dict(word.partition("=")[::2] for word in words[1:])
        answer = await self._relay.ask(words[0] if words else "", fields, words=True)
        if not answer.pop("ok"):
            self.refused += 1
            return f"error {answer['error']}"
        return " ".join(["ok", *_pairs({name: _joined(value) for name, value in answer.items() if value})])

    async def _tell(self, writer: asyncio.StreamWriter, topics: tuple[str, ...]) -> None:
        number = self._relay.number
        with contextlib.suppress(ConnectionError, TimeoutError):
            while True:
                for told in await self._relay.wait(number, topics, None):
                    await _say(writer, written(told))
                    number = told.number
        writer.close()  # who does not read is let go


def written(told: Told) -> str:
    """Return a message as a line."""
    return " ".join([told.topic, *_pairs(told.fields)])


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [
        f"{name}={shlex.quote(str(int(value) if isinstance(value, bool) else value))}"
        for name, value in fields.items()
        if name not in ("topic", "image") and isinstance(value, str | int | float)
    ]


def _joined(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # quotes that do not end
        return line.split()


async def _say(writer: asyncio.StreamWriter, text: str) -> None:
    writer.write(" ".join(text.split()).encode() + b"\n")
    async with asyncio.timeout(STALL_S):
        await writer.drain()
