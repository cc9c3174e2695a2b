"""Makes the pictures of the page in the documentation: a whole demo, looked at in headless Chromium.

    python docs/screenshots.py [--out docs]

The operator's page, dark and light, while a simulated participant is decoded and calibrated, and its controls; the
participant's page in each of its states, dark above, light below. Look at each picture before it is kept.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from rtdecode import client as wire
from rtdecode.publish.display.follower import Watcher
from rtdecode.publish.display.web import bound

SIZE = (1280, 800)
PARTICIPANT_SIZE = (400, 172)
THEMES = ("dark", "light")
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
CALIBRATED = """
const run = document.getElementById("run").textContent;
return document.getElementById("rank").textContent.endsWith("%") && run > "run 5";
"""
CONFIRMED = """
document.querySelector("[data-command=pause]").click();
return !document.getElementById("confirm").hidden;
"""
LAST_SUPPORTED = """
const rows = [...document.querySelectorAll("#list li")], picture = document.getElementById("picture");
const hit = rows.length > 12 && rows[0].className === "hit";
return hit && rows[0].querySelector(".sure").textContent.endsWith("%") && !picture.hidden && picture.complete
  && document.getElementById("revision").textContent.endsWith("final");
"""


def browser(size: tuple[int, int]) -> Any:
    """Open a browser whose window shows that many pixels."""
    options = webdriver.ChromeOptions()
    for one in CHROMIUM:
        options.add_argument(one)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    told = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)
    return chrome


def until(chrome: Any, script: str, seconds: float = 900.0) -> None:
    """Wait until a script of the page returns true."""
    WebDriverWait(chrome, seconds, 0.02).until(lambda b: b.execute_script(script))


def in_themes(chrome: Any, save: Callable[[str], object]) -> None:
    """Show the page in each theme, and save it."""
    for theme in THEMES:
        shown = f"document.documentElement.dataset.theme = '{theme}'"
        chrome.execute_script(f"{shown}; window.dispatchEvent(new Event('resize'))")
        chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        save(theme)


def operator(out: Path) -> None:
    """Take pictures of the operator's page while a demo runs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rtdecode", "demo", "--no-browser", "--port", "0"]
        demo = subprocess.Popen([*command, "--out", f"{folder}/demo"], stdout=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        address = next(found[0] for line in demo.stdout if (found := re.search(r"http://[\d.]+:\d+/", line)))
        threading.Thread(target=demo.stdout.read, daemon=True).start()
        chrome = browser(SIZE)
        try:
            chrome.get(address)
            until(chrome, CALIBRATED)
            in_themes(chrome, lambda theme: chrome.save_screenshot(str(out / f"page-calibrating-{theme}.png")))
            until(chrome, LAST_SUPPORTED)
            in_themes(chrome, lambda theme: chrome.save_screenshot(str(out / f"page-{theme}.png")))
            chrome.execute_script("document.getElementById('open-controls').click()")
            until(chrome, CONFIRMED)
            in_themes(chrome, lambda theme: chrome.save_screenshot(str(out / f"page-controls-{theme}.png")))
        finally:
            chrome.quit()
            demo.send_signal(signal.SIGINT)
            demo.wait()


def participant(out: Path) -> None:
    """Put together what the participant's page shows: fixation, values, a picture, and a view that lags."""
    watcher = Watcher("inproc://none", "inproc://none")
    watcher.start = watcher.stop = lambda: None  # type: ignore[method-assign]
    server, listening, address = bound(watcher, None, 0)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    chrome = browser(PARTICIPANT_SIZE)

    def tell(kind: type[wire.Message], **more: Any) -> None:
        message = kind(session="s", t_published=time.time(), **more)
        with watcher.lock:
            if isinstance(message, wire.Heartbeat):
                watcher.board.contact.beat(message)
            watcher.take(message)

    buffer = BytesIO()
    Image.radial_gradient("L").save(buffer, "png")
    of = {"trial": "t1", "revision": 0}

    def supported() -> None:
        tell(wire.Score, **of, supported=True)
        tell(wire.Reconstruction, **of, image=buffer.getvalue())

    late = "const real = performance.now.bind(performance); performance.now = () => real() + 900"
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("fixation", lambda: tell(wire.Run, run=1, state="started")),
        ("thermometer", lambda: tell(wire.Feedback, state="shown", step=13, steps=20)),
        ("thermometer", lambda: tell(wire.Feedback, state="held", steps=20)),
        ("picture", supported),
        ("fixation", lambda: chrome.execute_script(late)),
    )
    gap, (width, height) = 6, PARTICIPANT_SIZE
    sheet = Image.new("RGB", (len(steps) * (width + gap) - gap, 2 * height + gap), (120, 120, 120))
    try:
        for row, theme in enumerate(THEMES):
            tell(wire.Heartbeat, every_s=20.0)
            chrome.get(f"{address}participant?theme={theme}")
            for column, (shown, step) in enumerate(steps):
                step()
                held = "document.body.hasAttribute('data-held')" if column == 2 else "true"
                told = "document.getElementById('trouble').textContent.startsWith('late')" if column == 4 else "true"
                until(chrome, f"return document.body.dataset.shows === '{shown}' && {held} && {told}")
                with Image.open(BytesIO(chrome.get_screenshot_as_png())) as taken:
                    sheet.paste(taken, (column * (width + gap), row * (height + gap)))
        sheet.save(out / "participant.png", optimize=True)
    finally:
        chrome.quit()
        server.should_exit = True
        serving.join()


def main() -> int:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    participant(out)
    operator(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
