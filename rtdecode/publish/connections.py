"""The connections to one bound socket: whose they are, which never said anything, and how one is ended."""

from __future__ import annotations

import os
import socket
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from rtdecode.errors import ProtocolError


class Connections:
    """What libzmq tells of the connections to one socket; used on the thread that owns it.

    Parameters
    ----------
    bound : zmq.Socket
        Before it is bound.

    Attributes
    ----------
    monitor : zmq.Socket
        Readable when `look` has something to see.
    strangers : int
        Connections that ended without a word of this protocol: random bytes, wrong or no keys.
    """

    def __init__(self, bound: zmq.Socket[bytes]) -> None:
        self._bound = bound
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        self.monitor = bound.get_monitor_socket(events)
        self._names: dict[int, str] = {}  # of the connections that have said something, by file descriptor
        self._gone: list[int] = []
        self.strangers = 0

    def look(self) -> None:
        """See which connections came and went."""
        while self.monitor.poll(0):
            told = recv_monitor_message(self.monitor)
            peer = int(told["value"])
            if peer in self._gone:  # a new connection has the descriptor of one that went
                self._gone.remove(peer)
                self._judge(peer)
            if told["event"] == zmq.EVENT_DISCONNECTED:
                self._gone.append(peer)

    def heard(self, frame: zmq.Frame) -> tuple[int, str]:
        """Return from which connection a frame came (its file descriptor), and under the name of which key.

        Raises
        ------
        ProtocolError
            It came from a peer that does not introduce itself.
        """
        try:
            peer, name = int(frame.get(zmq.SRCFD)), _name(frame)
        except zmq.ZMQError:
            raise ProtocolError("expected a peer of the ZeroMQ protocol 3.0 or later") from None
        self.look()  # the one that had this descriptor before must not be taken for this one
        self._names[peer] = name
        return peer, name

    def settle(self) -> None:
        """Judge those that went; call it when everything that they said was heard."""
        for peer in self._gone:
            self._judge(peer)
        self._gone.clear()

    def _judge(self, peer: int) -> None:
        if self._names.pop(peer, None) is None:
            self.strangers += 1

    def end_of(self, names: set[str]) -> None:
        """End all connections of these keys."""
        for peer in [peer for peer, name in self._names.items() if name in names]:
            self.end(peer)

    def end(self, peer: int) -> bool:
        """End one connection; False if it was gone already."""
        port = int(self._bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        try:
            with socket.socket(fileno=os.dup(peer)) as connection:
                if connection.getsockname()[1] != port:
                    return False  # it has gone by itself, and its descriptor is another's
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True


def _name(frame: Any) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # no keys are asked for
        return ""
