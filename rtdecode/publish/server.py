"""The sockets: XPUB for the stream, ROUTER for requests, both owned by one thread.

What one peer can make this process hold is bounded: messages that wait for a slow subscriber (who fills the gap by
`replay`), answers that nobody fetches, frames' sizes, subscriptions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from rtdecode import client as wire
from rtdecode.errors import ProtocolError, RtdecodeError
from rtdecode.publish import requests
from rtdecode.publish.messages import TOPICS
from rtdecode.publish.publisher import without_folders

STREAM_WAITING = 1000
"""Messages that wait for one subscriber."""
ANSWERS_WAITING = 64
"""Answers that wait for one client, each at most a page of a replay; more are dropped."""
REQUESTS_WAITING = 64
SUBSCRIPTION_BYTES = 1024
STRANGE_SUBSCRIPTIONS = 256
"""Subscriptions to no topic of ours until a subscriber is cut off."""
LOG_EVERY_S = 5.0
_log = logging.getLogger(__name__)


class Server:
    """Sends what it is given and, once started, answers requests until closed.

    Parameters
    ----------
    stream, requests_address : str
        ZeroMQ addresses; port 0 takes a free one.

    Attributes
    ----------
    stream, requests : str
        The addresses really bound.
    rejected : int
        Requests refused so far.
    broken : str or None
        Why nothing is sent or answered any more; None while all is well.

    Raises
    ------
    ProtocolError
        An address cannot be bound.
    """

    def __init__(self, stream: str, requests_address: str) -> None:
        self._context = zmq.Context()
        self._outbox: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._pub = self._context.socket(zmq.XPUB)  # as PUB, and tells of each subscription that is new
        self._pub.setsockopt(zmq.SNDHWM, STREAM_WAITING)
        self._pub.setsockopt(zmq.RCVHWM, STRANGE_SUBSCRIPTIONS)
        self._pub.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.MAXMSGSIZE, 2 * requests.MAX_BYTES)
        self._router.setsockopt(zmq.RCVHWM, REQUESTS_WAITING)
        self._router.setsockopt(zmq.SNDHWM, ANSWERS_WAITING)
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_lock = threading.Lock()
        self._closing = threading.Event()
        self._strange: Counter[int] = Counter()  # by the subscriber's file descriptor
        self._refusals_told = self._told_at = 0.0
        self.rejected = 0
        self.broken: str | None = None
        try:
            self._pub.bind(stream)
            self._router.bind(requests_address)
            self._wake_out.bind("inproc://wake")
            self._wake_in.connect("inproc://wake")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ProtocolError(
                f"cannot bind {stream} and {requests_address}: {error}; is another daemon running?"
            ) from None
        self.stream = self._pub.getsockopt_string(zmq.LAST_ENDPOINT)
        self.requests = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread: threading.Thread | None = None

    def start(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        """Send what is queued and answer requests from now on.

        Parameters
        ----------
        answer : callable
            Gets a request and returns the fields of its answer; an `RtdecodeError` becomes an answer that tells of
            it. Called on the publish thread.
        """
        self._thread = threading.Thread(target=self._work, args=(answer,), name="publish")
        self._thread.start()

    def send(self, topic: bytes, payload: bytes) -> None:
        """Queue one message for sending."""
        self._outbox.put((topic, payload))
        self._wake()

    def close(self) -> None:
        """Send what is queued, then close the sockets."""
        self._closing.set()
        self._wake()
        if self._thread is None:
            self._context.destroy(linger=0)
        else:
            self._thread.join()

    def _wake(self) -> None:
        with self._wake_lock, contextlib.suppress(zmq.ZMQError):  # enough wake-ups are waiting, or nobody is left
            self._wake_in.send(b"", zmq.DONTWAIT)

    def _work(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        try:
            self._serve(answer)
        except Exception as error:  # whoever runs the process must learn of it and end it
            _log.exception("the stream has ended")
            self.broken = f"{type(error).__name__}: {error}"
        finally:
            self._context.destroy(linger=500)

    def _serve(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        poller = zmq.Poller()
        for waiting in (self._pub, self._router, self._wake_out):
            poller.register(waiting, zmq.POLLIN)
        while not (self._closing.is_set() and self._outbox.empty()):
            ready = dict(poller.poll())
            if self._wake_out in ready:
                self._wake_out.recv()
            if self._pub in ready:
                self._subscriptions()
            while not self._outbox.empty():
                self._pub.send_multipart(self._outbox.get())
            if self._router in ready:
                self._respond(answer)

    def _subscriptions(self) -> None:
        """Pass over what subscribers say; cut off who asks for too much that does not exist."""
        for _ in range(STRANGE_SUBSCRIPTIONS):
            if not self._pub.poll(0):
                return
            frame = self._pub.recv(copy=False)
            said = frame.bytes
            if said[:1] == b"\x01" and not any(topic.encode().startswith(said[1:]) for topic in TOPICS):
                peer = frame.get(zmq.SRCFD)
                self._strange[peer] += 1
                if self._strange[peer] >= STRANGE_SUBSCRIPTIONS:
                    del self._strange[peer]
                    self._cut_off(peer)

    def _cut_off(self, peer: int) -> None:
        """End the connection of one subscriber; libzmq then forgets what it had subscribed to."""
        port = int(self.stream.rpartition(":")[2])
        try:
            with socket.socket(fileno=os.dup(peer)) as connection:
                if connection.getsockname()[1] != port:
                    return  # it has gone by itself, and its descriptor is another's
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        _log.error("a subscriber asked for %d topics that do not exist: cut off", STRANGE_SUBSCRIPTIONS)

    def _respond(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        frames = self._router.recv_multipart()
        identity, payload = frames[0], frames[-1]
        number: int | None = None
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a request is one frame, got {len(frames) - 1}")
            request = requests.decode(payload)
            number = request.id
            reply = msgpack.packb({"v": wire.VERSION, "id": number, "ok": True, **answer(request)})
        except Exception as error:  # no request may end the stream
            self.rejected += 1
            reason = str(error) if isinstance(error, RtdecodeError) else f"{type(error).__name__}: {error}"
            self._log_refusal(reason, error)
            refusal = {"ok": False, "error": without_folders(reason), "code": getattr(error, "code", "")}
            reply = msgpack.packb({"v": wire.VERSION, "id": number, **refusal}, unicode_errors="replace")
        self._router.send_multipart([identity, reply], zmq.DONTWAIT)  # dropped where answers are not fetched

    def _log_refusal(self, reason: str, error: Exception) -> None:
        """Log a refused request, but not each of many."""
        if time.monotonic() - self._told_at < LOG_EVERY_S and self._told_at:
            return
        since = self.rejected - int(self._refusals_told)
        more = f" (and {since - 1} others before it)" if since > 1 else ""
        _log.warning("request refused: %s%s", reason, more, exc_info=not isinstance(error, RtdecodeError))
        self._refusals_told, self._told_at = self.rejected, time.monotonic()
