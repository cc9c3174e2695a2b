"""Keeps a board up to date with the stream, whatever the stream does."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, time

import zmq

from rtdecode import client as wire
from rtdecode.publish import messages
from rtdecode.publish.display.board import Board
from rtdecode.publish.display.participant import ParticipantView
from rtdecode.publish.display.steering import Steering

TOPICS = tuple(topic for topic in messages.TOPICS if topic not in ("embedding", "prediction"))
ANSWER_S = 2.0
_LOOK_S = 0.2
_AGAIN_S = 5.0
_KINDS_LOGGED = 100
_log = logging.getLogger(__name__)


class Watcher:
    """Follows the stream on threads of its own, which end when told to and for no other reason.

    Heartbeats are received by one thread and all else by another: however long it takes to be told what was published
    before, heartbeats are timed when they come.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    key : str or None
        File of a key, where the daemon asks for keys.

    Attributes
    ----------
    board : Board
        Used only by whoever holds `lock`.
    view : ParticipantView
        The same.
    steering : Steering
        Asks the daemon for what the operator wants.
    unreadable : int
        Messages that could not be read or shown.
    """

    def __init__(self, stream: str, requests: str, key: str | None = None) -> None:
        self.board = Board()
        self.steering = Steering(requests, key)
        self.view = ParticipantView(self.board.contact)
        self._told: set[Callable[[], object]] = set()
        self.lock = threading.Lock()
        self.unreadable = 0
        self._addresses = (stream, requests)
        self._key = key
        self._stop = threading.Event()
        self._logged: set[str] = set()
        self._threads = [
            threading.Thread(target=self._repeat, args=(topics, once), name=name)
            for name, topics, once in (
                ("display", TOPICS, self._follow),
                ("heartbeats", ("heartbeat",), self._beat),
            )
        ]
        self._ask_at: float | None = 0.0

    @contextmanager
    def telling(self, call: Callable[[], object]) -> Iterator[None]:
        """Call a function, on the watcher's thread, whenever something has come."""
        self._told.add(call)
        try:
            yield
        finally:
            self._told.discard(call)

    def take(self, message: wire.Message) -> None:
        """Show a message; used by whoever holds `lock`."""
        self.board.apply(message)
        self.view.apply(message)
        self.changed()

    def changed(self) -> None:
        """Tell those that `telling` has call; used by whoever holds `lock`."""
        for call in tuple(self._told):
            call()

    def start(self) -> None:
        """Begin to follow the stream."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.steering.close()

    def _repeat(self, topics: tuple[str, ...], once: Callable[[wire.Client], None]) -> None:
        while not self._stop.is_set():
            try:
                with wire.Client(*self._addresses, topics=topics, timeout_s=ANSWER_S, key=self._key) as client:
                    self._ask_at = 0.0
                    while not self._stop.is_set():
                        once(client)
            except Exception:  # without sockets there is nothing to follow; with new ones there may be
                _log.exception("the stream at %s cannot be followed; trying again", self._addresses[0])
                self._stop.wait(_AGAIN_S)

    def _beat(self, client: wire.Client) -> None:
        """Take one turn of the thread that times heartbeats."""
        try:
            message = client.receive(_LOOK_S)
            if isinstance(message, wire.Heartbeat):
                with self.lock:
                    self.board.contact.beat(message)
                waiting = self.board.notices.is_open("page", "unsent")
                if message.unsent or waiting:
                    self._say("unsent", f"{message.unsent} messages wait for the disk", over=not message.unsent)
        except zmq.ZMQError:
            raise
        except Exception as error:  # of a message from outside; the other thread counts it
            _log.debug("heartbeat not read: %s", error)

    def _follow(self, client: wire.Client) -> None:
        """Take one turn of the thread that shows what happens."""
        try:
            if self._ask_at is not None and monotonic() >= self._ask_at:
                client.catch_up()
                self._ask_at = None
                self._say("no-answer", "", over=True)
            before_it = client.unreadable
            message = client.receive(_LOOK_S)
            if client.unreadable > before_it:
                self._unread(client.unreadable - before_it, "not of this protocol")
            if message is None:
                return
            with self.lock:
                before = self.board.session
                self.take(message)
                if self.board.session != before:
                    self._ask_at = 0.0  # for what the new session has published already
        except zmq.ZMQError:
            raise
        except TimeoutError as error:
            if self._ask_at is not None:
                self._ask_at = monotonic() + _AGAIN_S  # until then what comes is shown
            self._once(f"no answer from the daemon at {self._addresses[1]}: {error}", logging.INFO)
            if self.board.contact.alive and not self.board.notices.is_open("page", "no-answer"):
                self._say("no-answer", f"the daemon lives, and does not answer at {self._addresses[1]}")
        except Exception as error:  # a message from outside must not end what the operator looks at
            if self._ask_at is not None:
                self._ask_at = monotonic() + _AGAIN_S
            self._unread(1, f"{type(error).__name__}: {error}")

    def _unread(self, number: int, why: str) -> None:
        self.unreadable += number
        self._once(f"message not shown: {why}", logging.WARNING)
        self._say("unreadable", f"{self.unreadable} messages could not be read or shown, the last one: {why}")

    def _say(self, kind: str, reason: str, *, over: bool = False) -> None:
        remedy = {
            "no-answer": "What was published before is not shown. Check the address; is the daemon busy or stuck?",
            "unsent": "The disk refuses what they rest on: make room, or mend it. Nothing is told meanwhile.",
            "unreadable": "The page goes on without it. Are the daemon and this page of one version?",
        }[kind]
        fault = wire.Fault(part="page", kind=kind, reason=reason, remedy=remedy, over=over, t_published=time())
        with self.lock:
            self.take(fault)

    def _once(self, text: str, level: int) -> None:
        shape = re.sub(r"\d+", "#", text)
        if shape not in self._logged and len(self._logged) < _KINDS_LOGGED:
            self._logged.add(shape)
            _log.log(level, "%s", text)
