"""Numbers messages, remembers them for late joiners and hands them to the transport."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.errors import ProtocolError

REPLAY_BYTES = 8 << 20


class Transport(Protocol):
    """Carries frames to whoever listens; must not block.

    Attributes
    ----------
    rejected : int
        Requests refused so far.
    """

    rejected: int

    def send(self, topic: bytes, payload: bytes) -> None:
        """Queue one message for sending."""
        ...


class _History:
    """Messages of one topic, the newest `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.payloads: deque[bytes] = deque()
        self.next_seq = 0
        self._bytes = 0
        self._limit = limit

    def add(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self.next_seq += 1
        self._bytes += len(payload)
        while self._bytes > self._limit and len(self.payloads) > 1:
            self._bytes -= len(self.payloads.popleft())


def _said_once(message: wire.Message) -> tuple[object, ...] | None:
    """Return what a session says but once of a message; None if it may be said again."""
    topic = wire.topic_of(message)
    match message:
        case wire.Volume():
            return topic, message.run, message.volume
        case wire.Skipped():
            return topic, message.run, message.volume, message.path
        case wire.Run():
            return topic, message.run, message.state
        case wire.Beta() | wire.Embedding() | wire.Score() | wire.Caption() | wire.Reconstruction():
            return topic, message.trial, message.revision
        case _:
            return None


class Publisher:
    """The one place where messages get their sequence number. Thread-safe.

    Parameters
    ----------
    session : str
        Session identifier that goes into every message.
    clock : Clock
    transport : Transport
    record : callable
        Called with topic and payload before each is sent (the journal of outputs).
    memory_bytes : int
        How much of each topic is remembered for `replay`.
    """

    def __init__(
        self,
        session: str,
        clock: Clock,
        transport: Transport,
        record: Callable[[bytes, bytes], None],
        *,
        memory_bytes: int = 256 << 20,
    ) -> None:
        self._session = session
        self._clock = clock
        self._transport = transport
        self._record = record
        self._lock = threading.Lock()
        self._history = {name: _History(memory_bytes) for name in wire.TOPICS}
        self._said: set[tuple[object, ...]] = set()

    def restore(self, outputs: Iterable[tuple[bytes, bytes]]) -> None:
        """Go on after what an interrupted session has published; its messages are not published again.

        Parameters
        ----------
        outputs : iterable of (topic, payload)
            As they were recorded.
        """
        with self._lock:
            for topic, payload in outputs:
                self._history[topic.decode()].add(payload)
                said = _said_once(wire.unpack(topic, payload))
                if said is not None:
                    self._said.add(said)

    def publish(self, message: wire.Message) -> None:
        """Give `message` its number, record it and send it; heartbeats are neither numbered nor recorded."""
        if self._said and _said_once(message) in self._said:
            return
        name = wire.topic_of(message)
        numbered = not isinstance(message, wire.Heartbeat)
        with self._lock:
            history = self._history[name]
            topic, payload = wire.pack(
                replace(
                    message,
                    session=self._session,
                    seq=history.next_seq if numbered else None,
                    t_published=self._clock.wall(),
                )
            )
            if numbered:
                self._record(topic, payload)
                history.add(payload)
            self._transport.send(topic, payload)

    def snapshot(self) -> list[tuple[str, bytes]]:
        """Return the last message of each topic that has one."""
        with self._lock:
            return [(name, h.payloads[-1]) for name, h in self._history.items() if h.payloads]

    def replay(self, topic: str, since_seq: int) -> dict[str, Any]:
        """Return remembered messages of `topic` from `since_seq` on, at most 8 MiB at a time.

        Returns
        -------
        dict
            ``messages``; ``next_seq`` to go on from; whether there are ``more``.

        Raises
        ------
        ProtocolError
            There is no such topic.
        """
        with self._lock:
            history = self._history.get(topic)
            if history is None:
                raise ProtocolError(f"no topic {topic!r}; expected one of {', '.join(self._history)}")
            first = history.next_seq - len(history.payloads)
            start = max(0, since_seq - first)
            messages: list[bytes] = []
            size = 0
            for payload in list(history.payloads)[start:]:
                size += len(payload)
                if messages and size > REPLAY_BYTES:
                    break
                messages.append(payload)
            next_seq = first + start + len(messages)
            return {"messages": messages, "next_seq": next_seq, "more": next_seq < history.next_seq}
