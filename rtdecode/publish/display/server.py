"""`rtdecode display`: a local page over the stream.

The page is a client like any other: it can be started, stopped and started again at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rtdecode.client import Client
from rtdecode.publish.display.board import Board
from rtdecode.stimuli import picture_of

PUSH_S = 0.2
ASSETS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
TOPICS = (
    "session", "run", "volume", "skipped", "score", "caption", "reconstruction", "calibration", "fault", "heartbeat",
)  # fmt: skip
_log = logging.getLogger(__name__)


class Watcher:
    """Keeps a board up to date with the stream, on a thread of its own.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    """

    def __init__(self, stream: str, requests: str) -> None:
        self.board = Board()
        self.lock = threading.Lock()
        self._addresses = (stream, requests)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="display")

    def start(self) -> None:
        """Begin to follow the stream."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with Client(*self._addresses, topics=TOPICS, timeout_s=2.0) as client:
            while not self._stop.is_set():
                try:
                    client.catch_up()
                    break
                except TimeoutError:
                    _log.info("waiting for the daemon at %s", self._addresses[1])
            while not self._stop.is_set():
                message = client.receive(0.2)
                if message is not None:
                    with self.lock:
                        self.board.apply(message)


def application(watcher: Watcher, stimuli: Path | None) -> Starlette:
    """Return the web application.

    Parameters
    ----------
    watcher : Watcher
    stimuli : Path or None
        Folder of the shown pictures, named by stimulus.
    """
    assets = files("rtdecode.publish.display")

    def snapshot() -> tuple[int, str]:
        with watcher.lock:
            return watcher.board.version, json.dumps(watcher.board.state(), allow_nan=False)

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in ASSETS:
            return Response(status_code=404)
        return Response(assets.joinpath(name).read_text(encoding="utf-8"), media_type=ASSETS[name])

    async def events(request: Request) -> Response:
        async def push() -> AsyncIterator[str]:
            shown = -1
            while not await request.is_disconnected():
                version, text = snapshot()
                if version != shown:
                    shown = version
                    yield f"data: {text}\n\n"
                await asyncio.sleep(PUSH_S)

        return StreamingResponse(push(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def picture(request: Request) -> Response:
        with watcher.lock:
            image = watcher.board.picture(request.path_params["trial"], int(request.path_params["revision"]))
        return Response(image, media_type="image/webp") if image is not None else Response(status_code=404)

    async def stimulus(request: Request) -> Response:
        name = request.path_params["name"]
        if stimuli is None or not re.fullmatch(r"[A-Za-z0-9_:+ -][A-Za-z0-9._:+ -]*", name):
            return Response(status_code=404)
        path = picture_of(stimuli, name)
        return FileResponse(path) if path is not None else JSONResponse({"error": "no such picture"}, 404)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/assets/{name}", page),
            Route("/events", events),
            Route("/picture/{trial}/{revision:int}", picture),
            Route("/stimulus/{name}", stimulus),
        ]
    )


def open_page(address: str) -> None:
    """Open a page in the person's browser; do nothing where there is no screen to show it on."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


def serve(
    stream: str,
    requests: str,
    *,
    port: int,
    stimuli: Path | None,
    ready: Callable[[str], None] | None = None,
) -> int:
    """Serve the page on loopback until interrupted; return an exit code.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    port : int
        0 takes a free one.
    stimuli : Path or None
        Folder of the shown pictures.
    ready : callable, optional
        Called with the page's address once it can be opened.
    """
    watcher = Watcher(stream, requests)

    @contextlib.asynccontextmanager
    async def following(_: Starlette) -> AsyncIterator[None]:
        watcher.start()
        yield
        watcher.stop()

    app = application(watcher, stimuli)
    app.router.lifespan_context = following
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    print(f"rtdecode display: {address}", flush=True)
    if ready is not None:
        ready(address)
    server.run(sockets=[listening])
    return 0
