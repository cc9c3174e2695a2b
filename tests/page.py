"""A served page whose board is told by the test instead of a stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

from rtdecode import client as wire
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.web import bound


class Told(Watcher):
    """A watcher that follows nothing: `tell` says what was received."""

    def __init__(self) -> None:
        super().__init__("inproc://none", "inproc://none")

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.steering.close()

    @property
    def followed(self) -> bool:
        """Whether a page is open."""
        return bool(self._told)

    def tell(self, *messages: wire.Message) -> None:
        with self.lock:
            for message in messages:
                if isinstance(message, wire.Heartbeat):
                    self.board.contact.beat(message)
                self.take(message)


class Page:
    """The connection of an open page.

    Attributes
    ----------
    board, now : dict
        What it was told last, held to JSON's own numbers.
    changed : list of dict
        The trials that were told with the last that changed.
    """

    def __init__(self, address: str) -> None:
        origin = address.rstrip("/")
        self._socket = websocket.create_connection(f"ws{origin.removeprefix('http')}/stream", origin=origin, timeout=60)
        self.board: dict[str, Any] = {}
        self.now: dict[str, Any] = {}
        self.changed: list[dict[str, Any]] = []
        self._trials: dict[int, dict[str, Any]] = {}
        self._asked = 0

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown()

    def follow(self) -> list[str]:
        """Take the next state; return the parts of the board that came with it."""
        while True:
            told = self._told()
            if "answer" not in told:
                new = told["board"]
                if "trials" in new:
                    self.changed = new["trials"]["changed"]
                    self._trials |= {one["number"]: one for one in new["trials"]["changed"]}
                    kept = [one for number, one in self._trials.items() if number >= new["trials"]["first"]]
                    self._trials = {one["number"]: one for one in kept}
                    new = {**new, "trials": kept}
                self.board |= new
                self.now = told["now"]
                return list(told["board"])

    def until(self, part: str) -> Any:
        """Take states until a part of the board comes; return it."""
        while part not in self.follow():
            pass
        return self.board[part]

    def ask(self, request: object, **fields: object) -> dict[str, Any]:
        """Ask, and return the answer."""
        self._asked += 1
        return self.say(json.dumps({"id": self._asked, "request": request, **fields}))

    def say(self, text: str) -> dict[str, Any]:
        """Send a text, and return the answer."""
        self._socket.send(text)
        while True:
            told = self._told()
            if "answer" in told:
                return told

    def _told(self) -> dict[str, Any]:
        def strange(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        told: dict[str, Any] = json.loads(self._socket.recv(), parse_constant=strange)
        return told


@contextmanager
def served(watcher: Watcher, stimuli: Path | None = None, port: int = 0) -> Iterator[str]:
    """Serve the page of a watcher; yield its address."""
    server, listening, address = bound(watcher, stimuli, port)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    try:
        yield address
    finally:
        server.should_exit = True
        serving.join()
