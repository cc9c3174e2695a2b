"""Numbers messages, knows where each is kept for late joiners, and hands them to the transport."""

from __future__ import annotations

import logging
import re
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.errors import JournalError, NoTopic
from rtdecode.publish.messages import TOPICS

REPLAY_BYTES = 128 << 10
_LOST = -1
_log = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries frames to whoever listens; must not block.

    Attributes
    ----------
    rejected : int
        Requests refused so far.
    broken : str or None
        Why nothing is carried any more; None while all is well.
    """

    rejected: int
    broken: str | None

    @property
    def strangers(self) -> int:
        """Connections so far that were none of this protocol, or without a key that holds."""
        ...

    @property
    def unsent(self) -> int:
        """Messages that wait for the disk."""
        ...

    def send(self, topic: bytes, payload: bytes) -> None:
        """Queue one message for sending."""
        ...


class Log(Protocol):
    """Keeps every message that was numbered, and finds it again."""

    def output(self, topic: bytes, payload: bytes) -> int:
        """Keep one message; return its place."""
        ...

    def published(self, places: Iterable[int]) -> Iterator[bytes]:
        """Yield the payloads at these places."""
        ...


class _History:
    """Where the messages of one topic are in the log, by sequence number; the last one itself."""

    def __init__(self) -> None:
        self.places = array("q")
        self.last: bytes | None = None

    def add(self, place: int, payload: bytes, seq: int | None = None) -> None:
        """Take the next message, or that of a number; those left out are lost."""
        while seq is not None and len(self.places) < seq:
            self.places.append(_LOST)
        self.places.append(place)
        self.last = payload


def _said_once(message: wire.Message) -> tuple[object, ...] | None:
    """Return what a session says but once of a message; None if it may be said again."""
    topic = wire.topic_of(message)
    match message:
        case wire.Volume() | wire.Prediction() | wire.StimulusMatch() | wire.Feedback(trial=None):
            return topic, message.run, message.volume
        case wire.Skipped():
            return topic, message.run, message.volume, message.path
        case wire.Run():
            return topic, message.run, message.state
        case _ if message.revision is not None:  # a beta, and whatever is decoded of one
            return topic, message.trial, message.revision
        case _:
            return None


def without_folders(text: str) -> str:
    """Leave of every full path in a text the last name: who uses a machine is nobody's business on the stream."""
    return re.sub(r"(?<![\w./:])/(?:[^/\s:'\"]+/)+(?=[^/\s])", "", text)


class Publisher:
    """The one place where messages get their sequence number. Thread-safe.

    Parameters
    ----------
    session : str
        Session identifier that goes into every message.
    clock : Clock
    transport : Transport
    log : Log
        Gets each message before it is sent, and serves `replay` (the journal of outputs).
    protocol : str or None
        Hash of the protocol, which goes into every message as well.
    """

    def __init__(
        self,
        session: str,
        clock: Clock,
        transport: Transport,
        log: Log,
        protocol: str | None = None,
    ) -> None:
        self._session = session
        self._protocol = protocol
        self._clock = clock
        self._transport = transport
        self._log = log
        self._lock = threading.Lock()
        self._history = {name: _History() for name in TOPICS}
        self._said: set[tuple[object, ...]] = set()

    def restore(self, outputs: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Go on after what an interrupted session has published; its messages are not published again.

        Parameters
        ----------
        outputs : iterable of (place, topic, payload)
            As the log has kept them.
        """
        with self._lock:
            for place, topic, payload in outputs:
                message = wire.unpack(topic, payload)
                self._history.setdefault(topic.decode(), _History()).add(place, payload, message.seq)
                said = _said_once(message)
                if said is not None:
                    self._said.add(said)

    def has_said(self, topic: str, *what: object) -> bool:
        """Whether an interrupted session has published that of a beta (trial, revision) or volume (run, volume)."""
        return (topic, *what) in self._said

    def publish(self, message: wire.Message) -> None:
        """Give `message` its number, record it and send it; heartbeats are neither numbered nor recorded."""
        if self._said and _said_once(message) in self._said:
            return
        match message:
            case wire.Fault():
                message = replace(
                    message, reason=without_folders(message.reason), remedy=without_folders(message.remedy)
                )
            case wire.Skipped():
                message = replace(message, reason=without_folders(message.reason))
        name = wire.topic_of(message)
        numbered = not isinstance(message, wire.Heartbeat)
        with self._lock:
            if isinstance(message, wire.Heartbeat):
                message = replace(message, last={n: len(h.places) - 1 for n, h in self._history.items() if h.places})
            history = self._history[name]
            topic, payload = wire.pack(
                replace(
                    message,
                    session=self._session,
                    protocol=self._protocol,
                    seq=len(history.places) if numbered else None,
                    t_published=self._clock.wall(),
                )
            )
            if numbered:
                history.add(self._kept(topic, payload), payload)
            self._transport.send(topic, payload)

    def _kept(self, topic: bytes, payload: bytes) -> int:
        """Keep a message; what no disk takes is sent all the same, but cannot be replayed."""
        try:
            return self._log.output(topic, payload)
        except JournalError as error:
            _log.error("a message of %s is sent but not kept: %s", topic.decode(), error)
            return _LOST

    def snapshot(self) -> list[tuple[str, bytes]]:
        """Return the last message of each topic that has one."""
        with self._lock:
            return [(name, h.last) for name, h in self._history.items() if h.last is not None]

    def replay(self, topic: str, since_seq: int) -> dict[str, Any]:
        """Return the messages of `topic` from `since_seq` on, about 128 KiB at a time.

        Returns
        -------
        dict
            ``messages``; their ``places``, which grow in the order in which messages of all topics were published;
            ``next_seq`` to go on from; whether there are ``more``.

        Raises
        ------
        NoTopic
            There is none of that name.
        JournalError
            A message cannot be read back.
        """
        with self._lock:
            history = self._history.get(topic)
            if history is None:
                raise NoTopic(f"no topic {topic!r}; expected one of {', '.join(self._history)}")
            places = history.places[since_seq:]
        known = [place for place in places if place != _LOST]
        messages: list[bytes] = []
        size = 0
        for payload in self._log.published(known):
            size += len(payload)
            if messages and size > REPLAY_BYTES:
                break
            messages.append(payload)
        told = len(messages)
        more = told < len(known)
        taken = places.index(known[told]) if more else len(places)
        return {"messages": messages, "places": known[:told], "next_seq": since_seq + taken, "more": more}
