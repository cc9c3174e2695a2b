"""A served page whose board is told by the test instead of a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        pass

    def tell(self, *messages: wire.Message) -> None:
        with self.lock:
            for message in messages:
                if isinstance(message, wire.Heartbeat):
                    self.board.contact.beat(message)
                self.take(message)


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
