"""What stands before the page: who may ask for it, what a browser may do with it, how many may ask at once."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 64
REQUEST_S = 5.0  # a browser on this machine sends its request at once
STALL_S = 10.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Refuses requests that are not for the page under its own name, and limits what a browser may do with answers.

    A page of another site whose name was bound to this machine asks under that name; it is refused, as is whatever
    another site's page sends.

    Parameters
    ----------
    app : callable
        The web application.
    port : int
        That the page is served at.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost", "[::1]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        strange = self._strange(Headers(scope=scope), scope["method"])
        if strange:
            await PlainTextResponse(f"{strange}\n", 403)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _strange(self, headers: Headers, method: str) -> str:
        """Return why a request is not for this page; empty if it is."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        wanted = f"expected a request for one of {', '.join(sorted(self._hosts))}"
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return f"{wanted}, got {', '.join(hosts) or 'none'}; open the page under its own address"
        allowed = {f"http://{host}" for host in self._hosts}
        if any(origin.lower() not in allowed for origin in origins):
            return f"expected a request of the page itself, got one of {', '.join(origins)}"
        if method not in ("GET", "HEAD") and not origins:
            return "expected a request of the page itself, got one without an origin"
        return ""


class Door(H11Protocol):
    """A connection that must say what it wants, and take it.

    Where there are too many, one that has not yet said what it wants gives way.
    """

    def connection_made(self, transport: Any) -> None:
        """Take a connection."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._leaving = False
        self._watch()
        doors = [other for other in self.connections if isinstance(other, Door) and not other._leaving]
        if len(doors) > CONNECTIONS:
            idle = [other for other in doors if other is not self and not other._busy]
            leaving = min(idle, key=lambda other: other._opened, default=self)
            leaving._leaving = True
            leaving.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what the other side sent."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """Wait until the other side reads, but not for long."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the other side reads."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Wait for a whole request, but not for long."""
        if self._busy and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif not self._busy and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if not self._busy:
            self.transport.close()
