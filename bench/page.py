"""From a message to its pixels, and two hours in flat memory: the operator's page in headless Chromium.

Messages leave a publisher as the daemon's do (20 a second: volumes, scores, captions, pictures in turn), and come over
ZeroMQ to `rtdecode display` and from it to a page whose board is full (200 trials, 240 volumes). A message counts as
painted when the frame is that shows it, by the browser's clock, which is the publisher's; one that a later one of its
kind overtook counts with that. Then two hours of messages (a volume a second,
a trial of three revisions every four) as fast as the page takes them: what JavaScript holds after a collection, nodes
and listeners after one third and at the end; and what the board holds in Python.

    python bench/page.py [--json FILE] [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import threading
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from PIL import Image
from selenium import webdriver

from rtdecode import client as wire
from rtdecode.publish import requests
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.web import bound
from rtdecode.publish.server import Server

GOAL_MS = 50.0
RATE_HZ = 20.0
PICTURE_PX = 256
TRIALS, VOLUMES = 200, 240
HOURS_S = 7200
CHROMIUM = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--window-size=1280,800",
)
HELD = ("heap_mb", "nodes", "listeners", "python_mb")
VOLUME = "document.getElementById('volume').textContent"
KINDS = ("volume", "score", "caption", "picture")
WATCHED = {"volume": "volume", "score": "evidence", "caption": "caption", "picture": "picture"}

# Notes when the text of an element, or the picture that it shows, was on the screen: a task that is posted while a
# frame is made runs after it was painted.
PROBE = """
window.painted = {};
let making = false;
const afterwards = (call) => {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => { channel.port1.close(); call(); };
  channel.port2.postMessage(0);
};
const next = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (call) => next((at) => {
  making = true;
  afterwards(() => { making = false; });
  call(at);
});
const note = (kind, read) => {
  let before = null;
  return () => {
    const now = read();
    if (now === null || now === before) return;
    before = now;
    const seen = () => (window.painted[kind] ||= []).push([now, performance.timeOrigin + performance.now()]);
    if (making) afterwards(seen);
    else next(() => afterwards(seen));
  };
};
for (const [kind, id] of Object.entries(arguments[0])) {
  const node = document.getElementById(id);
  const drawn = () => node.complete && !node.hidden ? String(node.naturalWidth) : null;
  const read = kind === "picture" ? drawn : () => node.textContent;
  const all = { attributes: true, childList: true, characterData: true, subtree: true };
  new MutationObserver(note(kind, read)).observe(node, all);
}
"""


def answer(asked: requests.AnyRequest) -> dict[str, Any]:
    """Answer as a daemon that has published nothing before."""
    match asked:
        case requests.Ping():
            return {"t_wall": time.time(), "t_mono": time.monotonic()}
        case requests.Replay():
            return {"messages": [], "places": [], "next_seq": asked.since_seq, "more": False}
    return {"messages": []}


def picture(side: int, width: int, rng: np.random.Generator) -> bytes:
    """Draw noise as a JPEG, whose width tells it from others."""
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, width, 3), np.uint8)).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


class Session:
    """The messages of a session, second by second: a volume each, a trial every four with three revisions."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._picture = picture(32, 32, rng)

    def start(self) -> list[wire.Message]:
        """Return what a session begins with."""
        told = {"state": "running", "mode": "decode", "participant": "01", "pack": "tiny", "censor_fd_mm": 0.9}
        return [wire.Heartbeat(session="s", every_s=20.0), wire.Session(session="s", categories=("cat", "dog"), **told)]

    def volume(self, run: int, index: int) -> wire.Volume:
        """Return one volume."""
        motion = tuple(map(float, self._rng.normal(0, 0.1, 6)))
        return wire.Volume(
            session="s", run=run, volume=index, motion=motion, fd_mm=0.2, tsnr=80.0, stages={"total": 20.0}
        )

    def trial(self, trial: str, revision: int) -> list[wire.Message]:
        """Return what is told of one beta."""
        head: dict[str, Any] = {"session": "s", "run": 1, "trial": trial, "revision": revision, "final": revision == 2}
        found = {"predicted": "cat", "condition": "cat", "evidence": 0.5, "chance": 0.125, "rank": 2.0, "pool": 80}
        score = wire.Score(**head, **found, supported=True, plausible=("cat", "dog"), stages={"total": 40.0})
        return [
            score,
            wire.Caption(**head, text="a small white shoe"),
            wire.Reconstruction(**head, image=self._picture),
        ]

    def second(self, at: int) -> list[wire.Message]:
        """Return the messages of one second; a run has 300."""
        run, index = 1 + at // 300, at % 300
        begins = [wire.Run(session="s", run=run, state="started", expected=300)] if index == 0 else []
        return [*begins, self.volume(run, index), *(self.trial(f"t{at // 4}", at % 4) if at % 4 < 3 else [])]


class Opened:
    """A publisher, the page's server, and a browser that shows the page with a full board."""

    def __init__(self, seed: int) -> None:
        self.session = Session(np.random.default_rng(seed))
        self._stream = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        self._stream.start(answer)
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self.watcher = Watcher(self._stream.stream, self._stream.requests)
        self._server, listening, address = bound(self.watcher, None, 0)
        self._serving = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._serving.start()
        options = webdriver.ChromeOptions()
        for one in CHROMIUM:
            options.add_argument(one)
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.browser.get(address)
        self.fill()

    def publish(self, message: wire.Message) -> None:
        """Send a message as a daemon does: numbered, unless it is a heartbeat."""
        topic = wire.topic_of(message)
        number = None if topic == "heartbeat" else next(self._numbers[topic])
        self._stream.send(*wire.pack(replace(message, session="s", seq=number, t_published=time.time())))

    def fill(self) -> None:
        """Fill the board with the last of a session, and wait for it."""
        start = self.session.start()
        while not self.watcher.board.session:  # the stream is not joined at once
            for message in start:
                self.publish(message)
            time.sleep(0.05)
        self.take(wire.Run(session="s", run=1, state="started", expected=100_000))
        for at in range(max(4 * TRIALS, VOLUMES)):
            self.take(*self.session.second(at)[-4:])
        self.shown("document.querySelectorAll('#list li').length", TRIALS)
        self.shown("[...document.images].every(image => image.complete)", wanted=True)

    def take(self, *messages: wire.Message) -> None:
        """Show messages as if they had come."""
        with self.watcher.lock:
            for message in messages:
                self.watcher.take(message)

    def shown(self, script: str, wanted: object) -> None:
        """Wait until a script of the page returns what is wanted."""
        deadline = time.monotonic() + 60
        while self.browser.execute_script(f"return {script}") != wanted:
            if time.monotonic() > deadline:
                raise SystemExit(f"in the page, {script} does not become {wanted}")
            time.sleep(0.02)

    def close(self) -> None:
        """End browser, page and publisher."""
        self.browser.quit()
        self._server.should_exit = True
        self._serving.join()
        self._stream.close()


def latency(opened: Opened, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Publish messages at a steady rate; return ms until each was painted, by kind and of all."""
    rng = np.random.default_rng(seed)
    head: dict[str, Any] = {"run": 1, "trial": "timed", "final": False}
    sent: dict[str, list[tuple[str, float]]] = {kind: [] for kind in KINDS}
    messages: list[tuple[str, str, wire.Message]] = []
    for number in range(count):
        kind, revision = KINDS[number % 4], number // 4
        match kind:
            case "volume":
                index = 10_000 + number
                told: tuple[str, wire.Message] = (f"{index + 1} / 100000", opened.session.volume(1, index))
            case "score":
                more = {"predicted": f"cat{number}", "evidence": 0.5, "chance": 0.1, "supported": True}
                told = f"cat{number}, 50% sure", wire.Score(**head, revision=revision, **more)
            case "caption":
                told = f"words {number}", wire.Caption(**head, revision=revision, text=f"words {number}")
            case _:
                width = PICTURE_PX + revision
                told = str(width), wire.Reconstruction(**head, revision=revision, image=picture(PICTURE_PX, width, rng))
        messages.append((kind, *told))
    opened.browser.execute_script(PROBE, WATCHED)
    began = time.monotonic()
    for number, (kind, marker, message) in enumerate(messages):
        time.sleep(max(0.0, began + number / RATE_HZ - time.monotonic()))
        sent[kind].append((marker, time.time()))
        opened.publish(message)
        if number % 10 == 0:
            opened.publish(wire.Heartbeat())
    last = {kind: told[-1][0] for kind, told in sent.items() if told}
    deadline = time.monotonic() + 30
    while True:
        painted = opened.browser.execute_script("return window.painted")
        if all(kind in painted and painted[kind][-1][0] == marker for kind, marker in last.items()):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the page does not show the last messages: {last}")
        time.sleep(0.1)
    took = {kind: _taken(sent[kind], painted[kind]) for kind in last}
    took["all"] = [ms for values in took.values() for ms in values]
    return {
        kind: {"p50_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95)), "n": len(ms)}
        for kind, ms in took.items()
    }


def _taken(sent: list[tuple[str, float]], painted: list[tuple[str, float]]) -> list[float]:
    """Return the ms of each message until it, or a later one of its kind, was painted."""
    places = {marker: place for place, (marker, _) in enumerate(sent)}
    at = np.full(len(sent), np.inf)
    for marker, ms in painted:
        place = places.get(marker)
        if place is not None:
            at[: place + 1] = np.minimum(at[: place + 1], np.where(np.isinf(at[: place + 1]), ms, at[: place + 1]))
    return [float(ms - 1e3 * began) for ms, (_, began) in zip(at, sent, strict=True)]


def memory(opened: Opened, seconds: int) -> dict[str, Any]:
    """Show a session as fast as the page takes it; return what is held after one third of it and at its end."""
    found = []
    opened.browser.refresh()  # without the probe
    opened.browser.execute_cdp_cmd("HeapProfiler.enable", {})
    tracemalloc.start()
    for at in range(seconds):
        opened.take(*opened.session.second(at))
        time.sleep(0.012)
        if at % 25 == 24:
            opened.shown(VOLUME, f"{at % 300 + 1} / 300")
        if at + 1 in (seconds // 3, seconds):
            opened.shown(VOLUME, f"{at % 300 + 1} / 300")
            found.append(_held(opened.browser))
    tracemalloc.stop()
    return {"seconds": seconds, "third": found[0], "end": found[1]}


def _held(browser: Any) -> dict[str, float]:
    for _ in range(3):
        browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    heap = browser.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"]
    counts = browser.execute_cdp_cmd("Memory.getDOMCounters", {})
    python = tracemalloc.get_traced_memory()[0]
    return dict(zip(HELD, (heap / 1e6, counts["nodes"], counts["jsEventListeners"], python / 1e6), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="few messages: does it run?")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, seconds = (80, 300) if arguments.quick else (2000, HOURS_S)
    opened = Opened(arguments.seed)
    try:
        took = latency(opened, count, arguments.seed)
        held = memory(opened, seconds)
    finally:
        opened.close()
    print_table(
        f"Message to pixel at {RATE_HZ:g} messages a second, ms (goal: p95 {GOAL_MS:g})",
        ["", "p50", "p95", "n"],
        [[kind, f"{one['p50_ms']:.1f}", f"{one['p95_ms']:.1f}", one["n"]] for kind, one in took.items()],
    )
    rows = [[f"{held[key][name]:.2f}" for name in HELD] for key in ("third", "end")]
    print_table(
        f"{seconds} s of a session",
        ["", *HELD],
        [["after one third", *rows[0]], ["at the end", *rows[1]]],
    )
    if arguments.json:
        write_json(arguments.json, {"latency": took, "memory": held})
    return 0


if __name__ == "__main__":
    sys.exit(main())
