"""The settings' section ``[publish]``: where clients connect."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rtdecode.sections import Positive

KEYS_FILE = "keys.toml"
Role = Literal["observe", "experiment", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Of clients, from the one that may least to the one that may all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """Where clients connect. Port 0 takes a free one; the daemon prints it.

    Attributes
    ----------
    stream, requests : str
        ZeroMQ addresses of the PUB and ROUTER sockets: ``tcp://``, an IPv4 address of this machine (``0.0.0.0``: all of
        them) and a port. Other machines reach those only that are not 127.0.0.1, for which `keys` are needed.
    keys : Path or None
        File of ``rtdecode keys new``: each client needs a key that is in it, on this machine too, and everything is
        encrypted (CURVE). None: whoever is on this machine may ask for everything.
    heartbeat_s : float
        Time between heartbeats, seconds.
    picture : {"jpeg", "webp", "png"}
        How messages carry pictures. JPEG is quick (a few milliseconds at 768 px) and loses a little; WebP and PNG lose
        nothing, and take hundreds and about a hundred. The session folder keeps lossless WebP in any case.
    send : {"after_write", "after_sync"}
        When a message, or the answer to a request, leaves. After its journal record is written: what a client has seen
        survives the end of the process, and at a power cut the last second may be lost. After the record and all that
        it rests on are on the disk: it survives the power cut too, and waits for the disk.
    """

    stream: str = "tcp://127.0.0.1:5591"
    requests: str = "tcp://127.0.0.1:5592"
    keys: Path | None = None
    heartbeat_s: Positive = 0.5
    picture: Literal["jpeg", "webp", "png"] = "jpeg"
    send: Literal["after_write", "after_sync"] = "after_write"

    def nearby(self) -> tuple[str, str]:
        """Return stream and requests as a client on this machine reaches them."""
        return self.stream.replace("//0.0.0.0:", "//127.0.0.1:"), self.requests.replace("//0.0.0.0:", "//127.0.0.1:")


def publish_problems(settings: PublishSettings) -> Iterator[str]:
    """Yield what is wrong with the addresses that clients connect to."""
    for label in ("stream", "requests"):
        address = getattr(settings, label)
        found = re.fullmatch(r"tcp://(\d+\.\d+\.\d+\.\d+):(\d+)", address)
        try:
            host = ipaddress.IPv4Address(found[1] if found else "")
        except ValueError:
            yield f"$.publish.{label}: expected tcp://IPV4-ADDRESS:PORT, such as tcp://127.0.0.1:5591, got {address}"
            continue
        if not host.is_loopback and settings.keys is None:
            yield (
                f"$.publish.{label}: {address} can be reached from other machines: expected keys beside it (rtdecode "
                'keys new NAME --role ROLE, then publish.keys = "keys.toml"), or the loopback address tcp://127.0.0.1:PORT'
            )
    if settings.stream == settings.requests and not settings.stream.endswith(":0"):
        yield f"$.publish.requests: expected another address than that of stream, got {settings.requests} twice"
