"""What stands before the page: who may ask for it, what a browser may do with it, how many may ask at once."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 64
PEER_CONNECTIONS = 16
"""Of one other machine."""
SOCKETS = 32
"""WebSockets at the same time."""
REQUEST_S = 5.0  # a browser on this machine sends its request at once
STALL_S = 10.0
COOKIE = "rtdecode"
PROGRAM = "X-Rtdecode"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FarDoor:
    """How a page is reached from other machines: encrypted, and with a token.

    Attributes
    ----------
    host : str
        IPv4 address to listen at; 0.0.0.0: all of this machine.
    certificate, secret : Path
        Files of the TLS certificate and of its key, PEM.
    names : tuple of str
        Names and addresses that browsers use for this machine.
    token : str
        Who does not show it is not let in.
    """

    host: str
    certificate: Path
    secret: Path
    names: tuple[str, ...]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


def content_type(headers: Headers) -> str:
    """Return the content type of a request without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _token_asked(scope: Scope) -> bytes:
    found: list[bytes] = parse_qs(scope["query_string"]).get(b"token", [b""])
    return found[0]


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
    door : FarDoor, optional
        How it is reached from other machines. None: under loopback names alone.
    headers : mapping
        Of every answer.
    programs : bool
        Whether programs may ask too, which tell no origin: requests that change something must then be JSON, or have
        the header of `PROGRAM`; no page of another site can send either without asking first.
    """

    def __init__(
        self,
        app: ASGIApp,
        port: int,
        *,
        door: FarDoor | None = None,
        headers: Mapping[str, str] = HEADERS,
        programs: bool = False,
    ) -> None:
        self._app = app
        self._headers, self._programs = headers, programs
        self._token = None if door is None else door.token
        self._scheme = "http" if door is None else "https"
        names = ("127.0.0.1", "localhost", "[::1]", *(() if door is None else door.names))
        self._hosts = {f"{name.lower()}:{port}" for name in names}
        if port == (80 if door is None else 443):
            self._hosts |= {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            headers = Headers(scope=scope)
            if self._strange(headers, "GET") or not self._known(headers) or not headers.getlist("origin"):
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        asked = Headers(scope=scope)
        strange = self._strange(asked, scope["method"])
        if strange:
            await PlainTextResponse(f"{strange}\n", 403)(scope, receive, guarded)
        elif self._token is not None and hmac.compare_digest(_token_asked(scope), self._token.encode()):
            response = RedirectResponse(scope["path"], 303)
            response.set_cookie(COOKIE, self._token, secure=True, httponly=True, samesite="strict")
            await response(scope, receive, guarded)
        elif not self._known(asked):
            await PlainTextResponse("open the page with the token that `rtdecode display` printed\n", 403)(
                scope, receive, guarded
            )
        else:
            await self._app(scope, receive, guarded)

    def _known(self, headers: Headers) -> bool:
        """Whether a browser has shown the token before, where one is asked for."""
        if self._token is None:
            return True
        shown = [cookie_parser(cookies).get(COOKIE, "") for cookies in headers.getlist("cookie")]
        return any(hmac.compare_digest(one.encode(), self._token.encode()) for one in shown)

    def _strange(self, headers: Headers, method: str) -> str:
        """Return why a request is not for this page; empty if it is."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        wanted = f"expected a request for one of {', '.join(sorted(self._hosts))}"
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return f"{wanted}, got {', '.join(hosts) or 'none'}; open the page under its own address"
        allowed = {f"{self._scheme}://{host}" for host in self._hosts}
        if any(origin.lower() not in allowed for origin in origins):
            return f"expected a request of the page itself, got one of {', '.join(origins)}"
        if method not in ("GET", "HEAD") and not origins:
            if not self._programs:
                return "expected a request of the page itself, got one without an origin"
            if content_type(headers) != "application/json" and PROGRAM not in headers:
                return f"expected the content type application/json, or the header {PROGRAM}, got neither"
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
        peer = self.client[0] if self.client else ""
        if (
            not peer.startswith("127.")
            and sum(other.client[:1] == (peer,) for other in doors if other.client) > PEER_CONNECTIONS
        ):
            self._leaving = True
            self.transport.abort()
        elif len(doors) > CONNECTIONS:
            idle = [other for other in doors if other is not self and not other._busy]
            leaving = min(idle, key=lambda other: other._opened, default=self)
            leaving._leaving = True
            leaving.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what the other side sent."""
        super().data_received(data)
        if self.transport.get_protocol() is self:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Leave the connection to the WebSocket, unless there are too many."""
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        if sum(not isinstance(other, Door) for other in self.connections) >= SOCKETS:
            self.transport.abort()
        else:
            super().handle_websocket_upgrade(event)

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
