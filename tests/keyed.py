"""A server on real sockets that asks for keys, and a peer that keeps what goes through it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtdecode.publish import requests
from rtdecode.publish.access import Access, new_key
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.publish_settings import ROLES
from tests.conftest import FakeClock
from tests.unit.test_wire import ListLog


class KeyedSession:
    """What a daemon is to its clients, with a key ``NAME.key`` for each role, named as the role is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, folder / "keys.toml"
        for role in ROLES:
            new_key(self.keys, role, role, Path(self.key(role)))
        self.asked: list[requests.AnyRequest] = []
        self.open(Access(self.keys))

    def open(self, access: Access | None) -> None:
        self.server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", access)
        self.out = Publisher("01-01-a", FakeClock(), self.server, ListLog())
        self.server.start(self.answer)

    @property
    def addresses(self) -> tuple[str, str]:
        return self.server.stream, self.server.requests

    def key(self, name: str) -> str:
        return str(self.folder / f"{name}.key")

    def answer(self, request: requests.AnyRequest) -> dict[str, object]:
        self.asked.append(request)
        match request:
            case requests.Ping():
                return {"t_wall": 0.0, "t_mono": 0.0}
            case requests.Snapshot():
                return {"messages": self.out.snapshot()}
            case requests.Replay():
                return self.out.replay(request.topic, request.since_seq)
        return {}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def tapped(port: int) -> Iterator[tuple[int, bytearray]]:
    """Stand between one client and a port of this machine; yield the port to go to, and what the client has sent."""
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def carry(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
            with contextlib.suppress(OSError):
                while piece := source.recv(4096):
                    if kept is not None:
                        kept += piece
                    target.sendall(piece)
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with contextlib.suppress(OSError):
                peer, _ = listening.accept()
                with peer, socket.create_connection(("127.0.0.1", port)) as far:
                    back = threading.Thread(target=carry, args=(far, peer, None))
                    back.start()
                    carry(peer, far, said)
                    back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], said
        listening.close()
        thread.join()
