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
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from rtdecode.errors import ProtocolError
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.guard import STALL_S, Door, FarDoor, Guard
from rtdecode.publish.pictures import media_type
from rtdecode.stimuli import picture_of

_FOR_GOOD = {"Cache-Control": "private, max-age=3600, immutable"}
LEAST_S = 0.01  # between two states: what comes in a flood is told together
TICK_S = 1.0
ASKED_BYTES = 8000
_PAGES = {"/": "page.html", "/participant": "participant.html"}
ASSETS = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "charts.js": "text/javascript",
    "dom.js": "text/javascript",
    "notices.js": "text/javascript",
    "stream.js": "text/javascript",
    "controls.js": "text/javascript",
    "theme.js": "text/javascript",
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
    written: tuple[int, dict[str, str]] = (-1, {})

    def snapshot() -> tuple[dict[str, str], str]:
        """Return the parts of the board but for the trials by their names, and the moment, as JSON."""
        nonlocal written
        version = watcher.board.version
        if written[0] != version:
            state = watcher.board.state()
            written = version, {name: _json(part) for name, part in state.items() if name != "trials"}
        return written[1], _json({**watcher.board.now(), "operator": [watcher.steering.name, watcher.steering.role]})

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", _PAGES.get(request.url.path, ""))
        if name not in ASSETS:
            return Response(status_code=404)
        content = assets.joinpath(name).read_text(encoding="utf-8")
        return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

    async def operator(socket: WebSocket) -> None:
        await socket.accept()
        came = _Signal()
        hearing = asyncio.ensure_future(_hear(socket, watcher))
        known: dict[str, str] = {}
        touches = 0
        try:
            with watcher.telling(came.tell):
                while not ending() and not hearing.done():
                    came.event.clear()
                    with watcher.lock:
                        parts, now, trials = *snapshot(), watcher.board.trials
                        new = [f'"{name}":{text}' for name, text in parts.items() if known.get(name) != text]
                        if trials.touches > touches or not known:
                            new.append(f'"trials":{_json(trials.since(touches))}')
                        known, touches = parts, trials.touches
                    await _send(socket, f'{{"board":{{{",".join(new)}}},"now":{now}}}')
                    await asyncio.sleep(LEAST_S)
                    await came.wait(TICK_S)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            pass
        finally:
            hearing.cancel()

    async def shown(request: Request) -> Response:
        with watcher.lock:
            image = watcher.view.picture(request.path_params["key"], int(request.path_params["number"]))
        if image is None:
            return Response(status_code=404)
        return Response(image, media_type=media_type(image), headers=_FOR_GOOD)

    async def participant(socket: WebSocket) -> None:
        await socket.accept()
        loop, came = asyncio.get_running_loop(), _Signal()
        gone = asyncio.ensure_future(_gone(socket))
        try:
            with watcher.telling(came.tell):
                while not ending() and not gone.done():
                    came.event.clear()
                    with watcher.lock:
                        told = {"version": watcher.view.version, **watcher.view.state()}
                    await _send(socket, json.dumps({**told, "sent_ms": 1000 * loop.time()}))
                    await came.wait(TICK_S / 2)
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
            WebSocketRoute("/stream", operator),
            Route("/participant", page),
            WebSocketRoute("/participant/stream", participant),
            Route("/participant/picture/{key}/{number:int}", shown),
            Route("/assets/{name}", page),
            Route("/picture/{key}/{number:int}", picture),
            Route("/stimulus/{name}", stimulus),
        ],
        middleware=[Middleware(Guard, port=port, door=door)],
        lifespan=following,
    )


class _Signal:
    """Wakes the sender of a page when the watcher, on threads of its own, has something new."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self) -> None:
        """Wake it; any thread."""
        self._loop.call_soon_threadsafe(self.event.set)

    async def wait(self, seconds: float) -> None:
        """Wait to be woken, but not for longer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.event.wait(), seconds)


async def _send(socket: WebSocket, text: str) -> None:
    async with asyncio.timeout(STALL_S):  # who does not read is let go
        await socket.send_text(text)


async def _gone(socket: WebSocket) -> None:
    """Wait until the other side has gone; it has nothing to say."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


async def _hear(socket: WebSocket, watcher: Watcher) -> None:
    """Answer what a page asks, until it has gone; a command may take its time, and holds nothing up."""
    asked: set[asyncio.Task[None]] = set()
    with contextlib.suppress(WebSocketDisconnect, KeyError, RuntimeError):  # it went, or sent no text
        while True:
            task = asyncio.ensure_future(_answer(socket, watcher, await socket.receive_text()))
            asked.add(task)
            task.add_done_callback(asked.discard)


async def _answer(socket: WebSocket, watcher: Watcher, text: str) -> None:
    number: int | None = None
    answer: dict[str, Any]
    try:
        asked = json.loads(text)
        number, kind = int(asked.pop("id")), asked.pop("request")
        if kind == "acknowledge":
            with watcher.lock:
                answer = {"ok": watcher.board.acknowledge(str(asked["key"]), int(asked["number"]), int(asked["count"]))}
                watcher.changed()
        else:
            answer = await watcher.steering.ask(kind, asked)
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError):
        answer = {"ok": False, "error": "expected a JSON object of id, request and its fields", "code": ""}
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        await _send(socket, _json({"answer": number, **answer}))


def _json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # rarely; looking through all of it would take several times as long
        return json.dumps(plain(value), allow_nan=False)


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
        ws_max_size=ASKED_BYTES,
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
