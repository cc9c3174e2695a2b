"""`rtdecode display`: a local page over the stream.

The page is a client like any other: it can be started, stopped and started again at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from rtdecode.errors import ProtocolError
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.guard import STALL_S, Door, FarDoor, Guard
from rtdecode.publish.pictures import media_type
from rtdecode.stimuli import picture_of

_FOR_GOOD = {"Cache-Control": "private, max-age=3600, immutable"}
PUSH_S = 0.2
TICK_S = 1.0
BODY_BYTES = 1000
BODY_S = 5.0
_PAGES = {"/": "page.html", "/participant": "participant.html"}
ASSETS = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "charts.js": "text/javascript",
    "dom.js": "text/javascript",
    "notices.js": "text/javascript",
    "participant.html": "text/html",
    "participant.css": "text/css",
    "participant.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def application(
    watcher: Watcher, stimuli: Path | None, port: int, ending: Callable[[], bool], door: FarDoor | None = None
) -> Starlette:
    """Return the web application, which starts and stops the watcher.

    Parameters
    ----------
    watcher : Watcher
    stimuli : Path or None
        Folder of the shown pictures, named by stimulus.
    port : int
        That it is served at; requests under another address are refused.
    ending : callable
        Whether the server is to end: pages that follow are then let go.
    door : FarDoor, optional
        How it is reached from other machines.
    """
    assets = files("rtdecode.publish.display")
    written = (-1, "")

    def snapshot() -> tuple[int, str]:
        """Return the board's version, and the board and the moment as JSON."""
        nonlocal written
        with watcher.lock:
            version, now = watcher.board.version, watcher.board.now()
            if written[0] != version:
                written = version, json.dumps(plain(watcher.board.state()), allow_nan=False)
            text = written[1]
        return version, f'{{"board":{text},"now":{json.dumps(plain(now), allow_nan=False)}}}'

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", _PAGES.get(request.url.path, ""))
        if name not in ASSETS:
            return Response(status_code=404)
        content = assets.joinpath(name).read_text(encoding="utf-8")
        return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

    async def events(request: Request) -> Response:
        async def push() -> AsyncIterator[str]:
            shown, quiet_s = -1, 0.0
            while not ending() and not await request.is_disconnected():
                version, text = snapshot()
                if version != shown or quiet_s >= TICK_S:
                    shown, quiet_s = version, 0.0
                    yield f"data: {text}\n\n"
                await asyncio.sleep(PUSH_S)
                quiet_s += PUSH_S

        return StreamingResponse(push(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def acknowledge(request: Request) -> Response:
        try:
            asked = json.loads(await _body(request))
            key, number, count = str(asked["key"]), int(asked["number"]), int(asked["count"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, TimeoutError):
            return JSONResponse({"error": "expected a JSON object of key, number and count"}, 400)
        with watcher.lock:
            found = watcher.board.acknowledge(key, number, count)
        return Response(status_code=204 if found else 404)

    async def shown(request: Request) -> Response:
        with watcher.lock:
            image = watcher.view.picture(request.path_params["key"], int(request.path_params["number"]))
        if image is None:
            return Response(status_code=404)
        return Response(image, media_type=media_type(image), headers=_FOR_GOOD)

    async def participant(socket: WebSocket) -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        await socket.accept()
        gone = asyncio.ensure_future(_gone(socket))
        try:
            with watcher.telling(lambda: loop.call_soon_threadsafe(came.set)):
                while not ending() and not gone.done():
                    came.clear()
                    with watcher.lock:
                        told = {"version": watcher.view.version, **watcher.view.state()}
                    async with asyncio.timeout(STALL_S):  # who does not read is let go
                        await socket.send_json({**told, "sent_ms": 1000 * loop.time()})
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(came.wait(), TICK_S / 2)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            pass
        finally:
            gone.cancel()

    async def picture(request: Request) -> Response:
        with watcher.lock:
            image = watcher.board.picture(request.path_params["key"], int(request.path_params["number"]))
        if image is None:
            return Response(status_code=404)
        return Response(image, media_type=media_type(image), headers=_FOR_GOOD)

    async def stimulus(request: Request) -> Response:
        name = request.path_params["name"]
        if stimuli is None or not re.fullmatch(r"[A-Za-z0-9_:+ -][A-Za-z0-9._:+ -]*", name):
            return Response(status_code=404)
        path = picture_of(stimuli, name)
        return FileResponse(path) if path is not None else JSONResponse({"error": "no such picture"}, 404)

    @contextlib.asynccontextmanager
    async def following(_: Starlette) -> AsyncIterator[None]:
        watcher.start()
        yield
        watcher.stop()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/participant", page),
            WebSocketRoute("/participant/stream", participant),
            Route("/participant/picture/{key}/{number:int}", shown),
            Route("/assets/{name}", page),
            Route("/events", events),
            Route("/acknowledge", acknowledge, methods=["POST"]),
            Route("/picture/{key}/{number:int}", picture),
            Route("/stimulus/{name}", stimulus),
        ],
        middleware=[Middleware(Guard, port=port, door=door)],
        lifespan=following,
    )


async def _gone(socket: WebSocket) -> None:
    """Wait until the other side has gone; it has nothing to say."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


async def _body(request: Request) -> bytes:
    """Return the body of a request.

    Raises
    ------
    ValueError
        It is too long.
    TimeoutError
        It does not come.
    """
    body = b""
    async with asyncio.timeout(BODY_S):
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_BYTES:
                raise ValueError("too long")
    return body


def plain(value: Any) -> Any:
    """Return what is shown as what JSON can hold: numbers that are not finite become None, other things their text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return str(value)


def open_page(address: str) -> None:
    """Open a page in the person's browser; do nothing where there is no screen to show it on."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


def bound(
    watcher: Watcher, stimuli: Path | None, port: int, door: FarDoor | None = None
) -> tuple[uvicorn.Server, socket.socket, str]:
    """Return the server of the page, the socket that it is to `run` with, and the page's address.

    It listens on loopback or, with a `door`, also to other machines.

    Parameters
    ----------
    watcher : Watcher
    stimuli : Path or None
        Folder of the shown pictures.
    port : int
        0 takes a free one.
    door : FarDoor, optional

    Raises
    ------
    ProtocolError
        The port cannot be had, or the certificate cannot be used.
    """
    try:
        listening = socket.create_server(("127.0.0.1" if door is None else door.host, port))
    except (OSError, OverflowError) as error:
        raise ProtocolError(
            f"cannot serve the page at port {port}: {error}; is a page served there already? choose another --port"
        ) from None
    taken = listening.getsockname()[1]
    config = uvicorn.Config(
        application(watcher, stimuli, taken, lambda: server.should_exit, door),
        http=Door,
        ws="wsproto",
        ws_max_size=BODY_BYTES,
        ssl_certfile=None if door is None else door.certificate,
        ssl_keyfile=None if door is None else door.secret,
        log_level="warning",
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    if door is None:
        return server, listening, f"http://127.0.0.1:{taken}/"
    try:
        config.load()
    except OSError as error:  # of the certificate
        listening.close()
        raise ProtocolError(
            f"{door.certificate}, {door.secret}: expected a TLS certificate and its key: {error}"
        ) from None
    return server, listening, f"https://{door.names[0]}:{taken}/?token={door.token}"


def serve(
    stream: str,
    requests: str,
    *,
    key: str | None = None,
    port: int,
    stimuli: Path | None,
    door: FarDoor | None = None,
    ready: Callable[[str], None] | None = None,
) -> int:
    """Serve the page until interrupted; return an exit code.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    key : str or None
        File of the page's key, where the daemon asks for keys.
    port : int
        0 takes a free one.
    stimuli : Path or None
        Folder of the shown pictures.
    door : FarDoor, optional
        How it is reached from other machines; None: it is not.
    ready : callable, optional
        Called with the page's address once it can be opened.
    """
    server, listening, address = bound(Watcher(stream, requests, key), stimuli, port, door)
    print(f"rtdecode display: {address}", flush=True)
    if ready is not None:
        ready(address)
    server.run(sockets=[listening])
    return 0
