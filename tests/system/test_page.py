"""The page in a browser, over a session told message by message."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from PIL import Image

from rtdecode import client as wire
from rtdecode.publish.display.server import Watcher, application

pytestmark = pytest.mark.system
Tell = Callable[..., None]


@pytest.fixture
def page(browser: Any) -> Iterator[tuple[Any, Tell]]:
    """The open page, and what tells it of messages."""
    watcher = Watcher("inproc://none", "inproc://none")
    config = uvicorn.Config(application(watcher, None), log_level="warning", timeout_graceful_shutdown=1, ws="none")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()

    def tell(*messages: wire.Message) -> None:
        with watcher.lock:
            for message in messages:
                watcher.board.apply(message)

    browser.get(f"http://127.0.0.1:{listening.getsockname()[1]}/")
    yield browser, tell
    browser.get("about:blank")
    server.should_exit = True
    serving.join()


def webp(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + grey, 8), (grey, grey, grey)).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


def head(trial: str, revision: int, *, final: bool = False) -> dict[str, Any]:
    return {"run": 3, "trial": trial, "revision": revision, "final": final, "stages": {"total": 40.0}}


def score(trial: str, revision: int, *, final: bool = False, evidence: float = 0.8) -> wire.Score:
    return wire.Score(
        **head(trial, revision, final=final), predicted="cat", condition="cat", evidence=evidence, chance=0.125,
        p_noise=0.01, rank=2, pool=80,
    )  # fmt: skip


def settled(browser: Any, **wanted: str) -> None:
    """Wait until the page shows these texts; fail with what it shows instead."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    script = "return Object.fromEntries(arguments[0].map(id => [id, document.getElementById(id).textContent.trim()]))"
    try:
        WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(script, list(wanted)) == wanted)
    except TimeoutException:
        assert browser.execute_script(script, list(wanted)) == wanted


def wait_for_picture(browser: Any, width: int) -> None:
    """Wait until the picture that is `width` pixels wide is on the page."""
    from selenium.webdriver.support.wait import WebDriverWait

    script = "const p = document.getElementById('picture'); return !p.hidden && p.complete && p.naturalWidth"
    WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(script) == width)


def test_the_page_follows_a_session(page: tuple[Any, Tell]) -> None:
    browser, tell = page
    session = {"participant": "01", "pack": "tiny", "categories": ("cat", "dog"), "calibration_runs": 2}
    tell(wire.Session(state="started", mode="calibrate", **session), wire.Run(run=1, state="started", expected=40))
    tell(wire.Volume(run=1, volume=9, motion=(0.1,) * 6, fd_mm=0.25, tsnr=80.0, stages={"total": 20.0}))
    settled(
        browser, mode="calibrating", volume="10 / 40", fd="· FD 0.25 mm · tSNR 80", caption="calibration run 1 of 2"
    )

    tell(wire.Session(state="started", mode="decode", **session), wire.Run(run=3, state="started", expected=40))
    tell(
        score("t1", 0), wire.Caption(**head("t1", 0), text="a cat"), wire.Reconstruction(**head("t1", 0), image=webp(1))
    )
    settled(browser, mode="decoding", run="run 3", caption="a cat", revision="· revision 0", evidence="cat, 80% sure")
    wait_for_picture(browser, 9)

    tell(score("t1", 1, final=True), wire.Caption(**head("t1", 1, final=True), text="a grey cat"))
    # The new words stand beside the old picture until its own revision is drawn.
    settled(browser, caption="a grey cat", revision="· revision 0", tally="· 1 of 1 categories right")
    tell(wire.Reconstruction(**head("t1", 1, final=True), image=webp(2)))
    settled(browser, revision="· revision 1, final")
    wait_for_picture(browser, 10)


def test_weak_evidence_is_dimmed_and_faults_are_told(page: tuple[Any, Tell]) -> None:
    browser, tell = page
    tell(wire.Session(state="started", mode="decode", participant="01", pack="tiny"))
    tell(score("t1", 0), score("t2", 0, evidence=0.14), wire.Reconstruction(**head("t2", 0), image=webp(3)))
    settled(browser, evidence="weak evidence for cat: 14%")
    assert "weak" in browser.find_element("id", "now").get_attribute("class")
    assert len(browser.find_elements("css selector", "#list li")) == 2

    tell(wire.Skipped(run=3, volume=7, reason="truncated"), wire.Fault(part="decode", reason="gone"))
    settled(browser, notices="fault: decode: goneskipped: run 3, volume 7: truncated")
    tell(score("t3", 0))
    settled(browser, evidence="cat, 80% sure")
    assert "weak" not in browser.find_element("id", "now").get_attribute("class")
    assert browser.get_log("browser") == []
