"""The sockets: PUB for the stream, ROUTER for requests, both owned by one thread."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from rtdecode import client as wire
from rtdecode.errors import ProtocolError, RtdecodeError
from rtdecode.publish import requests

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

    Raises
    ------
    ProtocolError
        An address cannot be bound.
    """

    def __init__(self, stream: str, requests_address: str) -> None:
        self._context = zmq.Context()
        self._outbox: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.SNDHWM, 20_000)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.MAXMSGSIZE, 2 * requests.MAX_BYTES)
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_lock = threading.Lock()
        self._closing = threading.Event()
        self.rejected = 0
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
        self._thread = threading.Thread(target=self._serve, args=(answer,), name="publish")
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
        with self._wake_lock, contextlib.suppress(zmq.Again):  # enough wake-ups are waiting already
            self._wake_in.send(b"", zmq.DONTWAIT)

    def _serve(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake_out in ready:
                self._wake_out.recv()
            while not self._outbox.empty():
                self._pub.send_multipart(self._outbox.get())
            if self._router in ready:
                self._respond(answer)
            if self._closing.is_set() and self._outbox.empty():
                break
        self._context.destroy(linger=500)

    def _respond(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        frames = self._router.recv_multipart()
        identity, payload = frames[0], frames[-1]
        number: int | None = None
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a request is one frame, got {len(frames) - 1}")
            request = requests.decode(payload)
            number = request.id
            reply = {"ok": True, **answer(request)}
        except RtdecodeError as error:
            self.rejected += 1
            _log.warning("request refused: %s", error)
            reply = {"ok": False, "error": str(error)}
        self._router.send_multipart([identity, msgpack.packb({"v": wire.VERSION, "id": number, **reply})])
