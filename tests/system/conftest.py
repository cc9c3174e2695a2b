"""What system tests share: a browser, and a process that dies while it writes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rtdecode.session.journal import Journal
from tests.system.line_harness import Killed

CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,900",
)  # fmt: skip


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    driver = shutil.which("chromedriver")
    if driver is None:
        message = "no chromedriver on this machine; install chromium and chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    for argument in CHROMIUM:
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int], random.Random], None]:
    """Let the process die while it writes the n-th journal records, each torn at a random byte."""

    def arm(points: list[int], rng: random.Random) -> None:
        append = Journal.append
        count = 0

        def dying(self: Journal, kind: str, **fields: object) -> int:
            nonlocal count
            count += 1
            start = append(self, kind, **fields)
            if count in points:
                size = self._path.stat().st_size
                with self._path.open("r+b") as stream:
                    stream.truncate(rng.randint(start, size))
                raise Killed
            return start

        monkeypatch.setattr(Journal, "append", dying)

    return arm
