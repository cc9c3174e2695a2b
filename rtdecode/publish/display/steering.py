"""What the operator asks of the daemon by the page, as a client like any other."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rtdecode import client as wire
from rtdecode.errors import ProtocolError
from rtdecode.publish import asking

ANSWER_S = 10.0
KINDS = ("control", "mode")
"""What a page may ask of the daemon."""


class Steering:
    """Passes requests of a page on, one at a time.

    Parameters
    ----------
    requests : str
        Address of the daemon.
    key : str or None
        File of the page's key, where the daemon asks for keys.

    Attributes
    ----------
    name, role : str
        Of the key. Without one, the page may do what whoever is on this machine may: operate.

    Raises
    ------
    ProtocolError, OSError
        The key cannot be read.
    """

    def __init__(self, requests: str, key: str | None = None) -> None:
        try:
            known = {"name": "", "role": "operate"} if key is None else wire.read_key(key)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        self.name, self.role = known["name"], known["role"]
        self._address, self._key = requests, key
        self._thread = ThreadPoolExecutor(1, "steering")
        self._client: wire.Client | None = None
        self._asked = False

    async def ask(self, kind: object, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask the daemon; return its answer: `ok`, and `error` and `code` where it was refused."""
        if self.role != "operate":
            return _refused(f"the key {self.name} has the role {self.role}; the role operate may steer", "role")
        if kind not in KINDS:
            return _refused(f"request: expected one of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
        if self._asked:
            return _refused("the last command has not been answered yet; wait for its answer", "busy")
        self._asked = True
        try:
            return await asking.ask(self._request, kind, fields)
        finally:
            self._asked = False

    async def _request(self, kind: str, **fields: Any) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._send(kind, fields))

    def _send(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if self._client is None:
            self._client = wire.Client("", self._address, timeout_s=ANSWER_S, key=self._key)
        return self._client.request(kind, **fields)

    def close(self) -> None:
        """Ask no more; wait for an answer that is due."""
        if self._client is not None:
            self._thread.submit(self._client.close)
        self._thread.shutdown()


def _refused(error: str, code: str = "") -> dict[str, Any]:
    return {"ok": False, "error": error, "code": code}
