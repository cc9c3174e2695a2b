"""The sockets: XPUB for the stream, ROUTER for requests, both owned by one thread.

Where keys are asked for, both speak CURVE, and this thread also tells libzmq whose keys hold (ZAP, RFC 27).

What one peer can make this process hold is bounded: messages that wait for a slow subscriber (who fills the gap by
`replay`), answers that nobody fetches, frames' sizes, subscriptions.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from rtdecode import client as wire
from rtdecode.errors import Busy, ProtocolError, RtdecodeError
from rtdecode.publish import requests
from rtdecode.publish.access import ANYBODY, Access, Caller
from rtdecode.publish.connections import Connections
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
AGAIN_S = 0.2
"""How often it is looked whether a key was revoked, or the disk takes again what it refused, seconds."""
_log = logging.getLogger(__name__)


class Server:
    """Sends what it is given and, once started, answers requests until closed.

    Parameters
    ----------
    stream, requests_address : str
        ZeroMQ addresses; port 0 takes a free one.
    access : Access, optional
        Keys, one of which each client must have. None: whoever reaches the addresses may ask for everything.

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

    def __init__(self, stream: str, requests_address: str, access: Access | None = None) -> None:
        self._context = zmq.Context()
        self._access = access
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind(
            "inproc://zeromq.zap.01"
        )  # before the others: libzmq lets in whoever comes while it is not there
        self._outbox: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._pub = self._context.socket(zmq.XPUB)  # as PUB, and tells of each subscription that is new
        self._pub.setsockopt(zmq.SNDHWM, STREAM_WAITING)
        self._pub.setsockopt(zmq.RCVHWM, STRANGE_SUBSCRIPTIONS)
        self._pub.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.MAXMSGSIZE, 2 * requests.MAX_BYTES)
        self._router.setsockopt(zmq.RCVHWM, REQUESTS_WAITING)
        self._router.setsockopt(zmq.SNDHWM, ANSWERS_WAITING)
        self._pub.setsockopt(zmq.XPUB_VERBOSE, 1)  # tells who subscribed, also to what others have subscribed to
        if access is not None:
            for bound in (self._pub, self._router):
                bound.setsockopt(zmq.CURVE_SERVER, 1)
                bound.setsockopt(zmq.CURVE_SECRETKEY, access.secret)
        self._subscribers, self._askers = Connections(self._pub), Connections(self._router)
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_lock = threading.Lock()
        self._closing = threading.Event()
        self._strange: Counter[int] = Counter()  # by the subscriber's file descriptor
        self._waiting: deque[tuple[bytes, bytes]] = deque()  # for the disk
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

    def start(
        self, answer: Callable[[requests.AnyRequest], dict[str, Any]], sync: Callable[[], bool] = lambda: True
    ) -> None:
        """Send what is queued and answer requests from now on.

        Parameters
        ----------
        answer : callable
            Gets a request and returns the fields of its answer; an `RtdecodeError` becomes an answer that tells of
            it. Called on the publish thread.
        sync : callable
            Called before anything leaves but heartbeats; while it returns False all else waits.
        """
        self._sync = sync
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
            self._end(linger=0)
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
            self._end(linger=500)

    def _end(self, linger: int) -> None:
        with self._wake_lock:  # libzmq aborts the process where a socket is closed while another thread sends by it
            self._wake_in.close(linger=0)
        self._context.destroy(linger=linger)

    def _serve(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        monitors = (self._subscribers.monitor, self._askers.monitor)
        poller = zmq.Poller()
        for waiting in (self._pub, self._router, self._wake_out, self._zap, *monitors):
            poller.register(waiting, zmq.POLLIN)
        while not (self._closing.is_set() and self._outbox.empty()):
            idle = self._access is None and not self._waiting
            ready = dict(poller.poll(None if idle else int(1000 * AGAIN_S)))
            self._subscribers.look()
            self._askers.look()
            if self._wake_out in ready:
                self._wake_out.recv()
            if self._zap in ready:
                self._let_in()
            self._cut_off_revoked()
            self._subscriptions()
            self._send()
            if self._router.poll(0):
                self._respond(answer)
            if not self._router.poll(0):
                self._askers.settle()

    def _send(self) -> None:
        """Send what is queued, all of it after one call of `sync`; only heartbeats do not wait for the disk."""
        while not self._outbox.empty():
            self._waiting.append(self._outbox.get())
        if not self._waiting:
            return
        leaving, self._waiting = self._waiting, deque()
        if not self._sync():
            self._waiting = deque(frames for frames in leaving if frames[0] != b"heartbeat")
            leaving = deque(frames for frames in leaving if frames[0] == b"heartbeat")
        for frames in leaving:
            self._pub.send_multipart(frames)

    @property
    def unsent(self) -> int:
        """Messages that wait for the disk."""
        return len(self._waiting)

    @property
    def strangers(self) -> int:
        """Connections so far that ended without a word of this protocol, or without a key that holds."""
        return self._subscribers.strangers + self._askers.strangers

    def _let_in(self) -> None:
        """Tell libzmq whether the key of a new connection holds, and whose it is."""
        version, number, _, _, _, _, *public = self._zap.recv_multipart()
        name = "" if self._access is None or not public else self._access.name_of(public[0])
        status = (b"200", b"OK") if name else (b"400", b"no key that holds")
        self._zap.send_multipart([version, number, *status, name.encode(), b""])

    def _cut_off_revoked(self) -> None:
        revoked = set() if self._access is None else self._access.refresh()
        if revoked:
            _log.warning("keys no longer hold, their connections are ended: %s", ", ".join(sorted(revoked)))
            self._subscribers.end_of(revoked)
            self._askers.end_of(revoked)

    def _subscriptions(self) -> None:
        """Take note of who subscribes; cut off who asks for too much that does not exist."""
        for _ in range(STRANGE_SUBSCRIPTIONS):
            if not self._pub.poll(0):
                self._subscribers.settle()
                return
            frame = self._pub.recv(copy=False)
            said = frame.bytes
            if said[:1] != b"\x01":  # an end of one, which libzmq itself tells where a connection ends; or nonsense
                self.rejected += said[:1] != b"\x00"
                continue
            try:
                peer, name = self._subscribers.heard(frame)
            except ProtocolError:
                self.rejected += 1
                continue
            if self._caller(name).role is None:
                self._subscribers.end(peer)
            elif not any(topic.encode().startswith(said[1:]) for topic in TOPICS):
                self._strange[peer] += 1
                if self._strange[peer] >= STRANGE_SUBSCRIPTIONS:
                    del self._strange[peer]
                    self._cut_off(peer)

    def _cut_off(self, peer: int) -> None:
        """End the connection of one subscriber; libzmq then forgets what it had subscribed to."""
        if self._subscribers.end(peer):
            _log.error("a subscriber asked for %d topics that do not exist: cut off", STRANGE_SUBSCRIPTIONS)

    def _caller(self, name: str) -> Caller:
        return ANYBODY if self._access is None else self._access.caller(name)

    def _respond(self, answer: Callable[[requests.AnyRequest], dict[str, Any]]) -> None:
        frames = self._router.recv_multipart(copy=False)
        identity, payload = frames[0].bytes, frames[-1].bytes
        number: int | None = None
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a request is one frame, got {len(frames) - 1}")
            request = requests.decode(payload)
            number = request.id
            self._caller(self._askers.heard(frames[-1])[1]).check(request)
            reply = msgpack.packb({"v": wire.VERSION, "id": number, "ok": True, **answer(request)})
            if not self._sync():
                raise Busy("the disk does not take what was asked, nor what is to be told: see the daemon's log")
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
