"""Makes the pictures of the page in the documentation, over the messages of a demo, in headless Chromium.

    rtdecode demo --no-browser --speed max --out DEMO
    python docs/screenshots.py DEMO [--out docs]

The operator's page, dark and light, while a simulated participant is calibrated and decoded, and its controls; the
participant's page in each of its states, dark above, light below. Look at each picture before it is kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from rtdecode import client as wire
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.web import bound
from rtdecode.session.entries import read_outputs

SIZE = (1280, 800)
PARTICIPANT_SIZE = (400, 172)
THEMES = ("dark", "light")
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def browser(size: tuple[int, int]) -> Any:
    """Open a browser whose window shows that many pixels."""
    options = webdriver.ChromeOptions()
    for one in CHROMIUM:
        options.add_argument(one)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    told = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)
    return chrome


def until(chrome: Any, script: str, seconds: float = 120.0) -> None:
    """Wait until a script of the page returns true."""
    WebDriverWait(chrome, seconds, 0.02).until(lambda b: b.execute_script(script))


def keep(chrome: Any, pictures: dict[str, Path]) -> None:
    """Show the page in each of these themes, and keep a picture of it."""
    for theme, path in pictures.items():
        shown = f"document.documentElement.dataset.theme = '{theme}'"
        chrome.execute_script(f"{shown}; window.dispatchEvent(new Event('resize'))")
        chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        with Image.open(BytesIO(chrome.get_screenshot_as_png())) as taken:
            taken.convert("RGB").save(path, optimize=True)


class Told(Watcher):
    """A watcher that follows nothing: it is told what was received."""

    def __init__(self) -> None:
        super().__init__("inproc://none", "inproc://none")

    def start(self) -> None:
        """Follow nothing."""

    def stop(self) -> None:
        """Follow nothing."""

    def tell(self, *messages: wire.Message) -> None:
        """Show messages, and that the daemon lives."""
        with self.lock:
            for message in messages:
                self.take(message)
            last = messages[-1]
            self.board.contact.beat(wire.Heartbeat(session=last.session, t_published=last.t_published, every_s=20.0))
            self.changed()


@contextmanager
def opened(size: tuple[int, int], stimuli: Path | None = None) -> Iterator[tuple[Told, Any, str]]:
    """Serve a page and open a browser; yield what it is told by, the browser, and the address."""
    told = Told()
    server, listening, address = bound(told, stimuli, 0)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    chrome = browser(size)
    try:
        yield told, chrome, address
    finally:
        chrome.quit()
        server.should_exit = True
        serving.join()


def published(session: Path) -> list[wire.Message]:
    """Return what a session has published, in order."""
    outputs = read_outputs(session / "journal" / "outputs.journal")
    return [wire.unpack(entry.topic.encode(), entry.payload) for _, entry in outputs]


def operator(out: Path, demo: Path) -> None:
    """Take pictures of the operator's page over the messages of a demo."""
    messages = published(next(demo.glob("sub-*_ses-*")))
    fifth = next(
        i for i, m in enumerate(messages) if isinstance(m, wire.Calibration) and m.run is None and m.trials > 140
    )
    sure = {
        m.trial
        for m in messages
        if isinstance(m, wire.Score) and m.final and m.supported and m.predicted == m.condition
    }
    captions = [i for i, m in enumerate(messages) if isinstance(m, wire.Caption) and m.final]
    shown = next(i for i in captions[len(captions) // 2 :] if messages[i].trial in sure)
    with opened(SIZE, demo / "stimuli") as (told, chrome, address):
        chrome.get(address)
        told.tell(*messages[: fifth + 1])
        until(chrome, "return document.body.dataset.view === 'calibrating'")
        keep(chrome, {"light": out / "page-calibrating.png"})
        told.tell(*messages[fifth + 1 : shown + 1])
        until(chrome, "return document.body.dataset.view === 'decoding'")
        until(chrome, "return [...document.images].every(image => image.complete)")
        keep(chrome, {"dark": out / "page.png", "light": out / "page-light.png"})
        chrome.execute_script("document.getElementById('open-controls').click()")
        until(chrome, "return !document.querySelector('[data-command=pause]').disabled")
        chrome.execute_script("document.querySelector('[data-command=pause]').click()")
        keep(chrome, {"dark": out / "page-controls.png"})


def participant(out: Path, demo: Path) -> None:
    """Put together what the participant's page shows: fixation, values, a picture, and a view that lags."""
    messages = published(next(demo.glob("sub-*_ses-*")))
    sure = {m.trial for m in messages if isinstance(m, wire.Score) and m.final and m.supported}
    drawn = next(m.image for m in messages if isinstance(m, wire.Reconstruction) and m.final and m.trial in sure)
    gap, (width, height) = 6, PARTICIPANT_SIZE
    sheet = Image.new("RGB", (5 * (width + gap) - gap, 2 * height + gap), (120, 120, 120))
    with opened(PARTICIPANT_SIZE) as (told, chrome, address):

        def tell(kind: type[wire.Message], **more: Any) -> None:
            told.tell(kind(session="s", t_published=time.time(), **more))

        def supported() -> None:
            tell(wire.Score, trial="t1", revision=0, supported=True)
            tell(wire.Reconstruction, trial="t1", revision=0, image=drawn)

        late = "const real = performance.now.bind(performance); performance.now = () => real() + 900"
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("fixation", lambda: tell(wire.Run, run=1, state="started")),
            ("thermometer", lambda: tell(wire.Feedback, state="shown", step=13, steps=20)),
            ("thermometer", lambda: tell(wire.Feedback, state="held", steps=20)),
            ("picture", supported),
            ("fixation", lambda: chrome.execute_script(late)),
        )
        for row, theme in enumerate(THEMES):
            chrome.get(f"{address}participant?theme={theme}")
            for column, (shown, step) in enumerate(steps):
                step()
                held = "document.body.hasAttribute('data-held')" if column == 2 else "true"
                says = "document.getElementById('trouble').textContent.startsWith('late')" if column == 4 else "true"
                until(chrome, f"return document.body.dataset.shows === '{shown}' && {held} && {says}")
                with Image.open(BytesIO(chrome.get_screenshot_as_png())) as taken:
                    sheet.paste(taken, (column * (width + gap), row * (height + gap)))
    sheet.save(out / "participant.png", optimize=True)


def main() -> int:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    participant(arguments.out, arguments.demo)
    operator(arguments.out, arguments.demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
