"""`rtdecode gateway`: HTTP with JSON, WebSocket, and lines of text, all on loopback.

It is a client of the daemon like any other: it runs on the machine whose programs need it, with a key of that machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from rtdecode import client as wire
from rtdecode.errors import ProtocolError
from rtdecode.publish.display.guard import Door, Guard, content_type
from rtdecode.publish.gateway.lines import LINE_BYTES, Lines
from rtdecode.publish.gateway.relay import TOPICS, Relay, Told, chosen

BODY_BYTES = 64 << 10
WAIT_S = 30.0
PIECES = 200
STALL_S = 10.0
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


def application(
    addresses: tuple[str, str], key: str | None, listening: socket.socket, port: int, pages: Path | None
) -> Starlette:
    """Return the web application, which also serves lines of text and follows the stream while it runs.

    Parameters
    ----------
    addresses : (str, str)
        Stream and requests of the daemon.
    key : str or None
        File of the gateway's key.
    listening : socket
        Where lines of text come in.
    port : int
        That it is served at.
    pages : Path or None
        Folder of an experiment's pages.
    """
    relay: Relay

    @contextlib.asynccontextmanager
    async def following(_: Starlette) -> AsyncIterator[None]:
        nonlocal relay
        async with wire.AsyncClient(*addresses, topics=TOPICS, key=key) as client:
            relay = Relay(client)
            server = await asyncio.start_server(Lines(relay).serve, sock=listening, limit=LINE_BYTES)
            follow = asyncio.ensure_future(relay.follow())
            yield
            follow.cancel()
            server.close()

    async def messages(request: Request) -> JSONResponse:
        try:
            asked = await _asked(request)
            topics = chosen(asked.get("topics", ""))
            after, wait_s = int(asked.get("after", "0")), float(asked.get("wait_s", "0"))
        except (ValueError, ProtocolError) as error:
            return JSONResponse({"ok": False, "error": str(error)}, 400)
        found = (await relay.wait(after, topics, min(max(wait_s, 0.0), WAIT_S)))[:PIECES]
        last = found[-1].number if found else after
        return JSONResponse({"messages": [_numbered(one) for one in found], "after": last, "silent": relay.silent})

    async def latest(request: Request) -> JSONResponse:
        try:
            found = relay.after(0, chosen((await _asked(request)).get("topics", "")))
        except (ValueError, ProtocolError) as error:
            return JSONResponse({"ok": False, "error": str(error)}, 400)
        return JSONResponse({"message": _numbered(found[-1]) if found else None, "silent": relay.silent})

    async def ask(request: Request) -> JSONResponse:
        words = content_type(request.headers) == "application/x-www-form-urlencoded"
        try:
            body = await _body(request)
            fields = dict(parse_qsl(body.decode())) if words else json.loads(body)
            if not isinstance(fields, dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as error:
            return JSONResponse({"ok": False, "error": f"expected a JSON object: {error}"}, 400)
        return JSONResponse(await relay.ask(request.path_params["kind"], fields, words=words))

    async def stream(socket: WebSocket) -> None:
        try:
            topics = chosen(socket.query_params.get("topics", ""))
        except ProtocolError:
            await socket.close(1008)
            return
        await socket.accept()
        tell = asyncio.ensure_future(_tell(socket, relay, topics))
        try:
            while True:
                await _answer(socket, relay, await socket.receive_text())
        except (WebSocketDisconnect, KeyError, TimeoutError, RuntimeError):  # it went, or sent no text
            pass
        finally:
            tell.cancel()

    routes: list[BaseRoute] = [
        Route("/messages", messages, methods=["GET", "POST"]),  # Octave's webread posts after a webwrite
        Route("/latest", latest, methods=["GET", "POST"]),
        Route("/request/{kind}", ask, methods=["POST"]),
        WebSocketRoute("/stream", stream),
    ]
    if pages is not None:
        routes.append(Mount("/", StaticFiles(directory=pages, html=True)))
    guard = Middleware(Guard, port=port, headers=_HEADERS, programs=True)
    return Starlette(routes=routes, middleware=[guard], lifespan=following)


async def _asked(request: Request) -> dict[str, str]:
    """Return the parameters of a request, of its address or as a form."""
    return {**request.query_params, **dict(parse_qsl((await _body(request)).decode()))}


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES:
            raise ValueError(f"more than {BODY_BYTES} bytes")
    return body


def _numbered(told: Told) -> dict[str, Any]:
    return {"number": told.number, **told.fields}


async def _tell(socket: WebSocket, relay: Relay, topics: tuple[str, ...]) -> None:
    number = relay.number
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        while True:
            for told in await relay.wait(number, topics, None):
                async with asyncio.timeout(STALL_S):  # who does not read is let go
                    await socket.send_json(_numbered(told))
                number = told.number


async def _answer(socket: WebSocket, relay: Relay, text: str) -> None:
    number: Any = None
    try:
        asked = json.loads(text[:BODY_BYTES])
        number, kind = asked.pop("id", None), asked.pop("request", None)
        answer = await relay.ask(kind, asked)
    except (ValueError, AttributeError, TypeError, RecursionError):
        answer = {"ok": False, "error": "expected a JSON object with id and request", "code": ""}
    async with asyncio.timeout(STALL_S):
        await socket.send_json({"answer": number, **answer})


def bound(
    addresses: tuple[str, str], *, key: str | None = None, port: int, lines: int, pages: Path | None = None
) -> tuple[uvicorn.Server, socket.socket, int, int]:
    """Return the server, the socket that it is to `run` with, and the ports of HTTP and of lines.

    Parameters
    ----------
    addresses, key, pages
        As of `application`.
    port, lines : int
        Of HTTP and of lines; 0 takes a free one.

    Raises
    ------
    ProtocolError
        A port cannot be had.
    """
    taken = []
    for name, number in (("--port", port), ("--lines", lines)):
        try:
            taken.append(socket.create_server(("127.0.0.1", number)))
        except (OSError, OverflowError) as error:
            for one in taken:
                one.close()
            raise ProtocolError(f"cannot serve at port {number}: {error}; choose another {name}") from None
    http, text = (one.getsockname()[1] for one in taken)
    config = uvicorn.Config(
        application(addresses, key, taken[1], http, pages),
        http=Door,
        ws="wsproto",
        ws_max_size=BODY_BYTES,
        log_level="warning",
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        server_header=False,
    )
    return uvicorn.Server(config), taken[0], http, text


def serve(
    addresses: tuple[str, str], *, key: str | None, port: int, lines: int, pages: Path | None,
    ready: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Serve until interrupted; return an exit code. Parameters as of `bound`."""
    server, listening, http, text = bound(addresses, key=key, port=port, lines=lines, pages=pages)
    print(f"rtdecode gateway: http://127.0.0.1:{http}/, lines at 127.0.0.1:{text}", flush=True)
    ready()
    server.run(sockets=[listening])
    return 0
