"""The examples of clients close a loop: daemon, screen, and a simulated participant who learns from what it shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.demo.processes import free_port
from rtdecode.session.entries import TrialEntry, read_inputs, read_outputs
from rtdecode.simulate.acquisition import NoiseParameters
from rtdecode.simulate.scanner import Scanner
from tests.regulating import BLOCK, EVERY, FIRST, T_R_S, plan_of, regulating
from tests.system.line_harness import PROTOCOL
from tests.system.test_examples_of_clients import example
from tests.system.test_gateway import running
from tests.system.test_two_visits import PATIENCE_S, started

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
JSPSYCH = os.environ.get("RTDECODE_JSPSYCH", "")
BLOCKS = 3
WATCH = """
new MutationObserver(() => { window.seen = document.body.innerText.trim() || window.seen; })
  .observe(document.documentElement, { childList: true, subtree: true, characterData: true });
"""
"""Keeps what is on the page, which jsPsych clears after each trial."""


@dataclass
class Screen:
    """What an example shows, as the participant in the scanner sees it."""

    look: Callable[[], str]

    def at(self, volume: int) -> float | None:
        """Wait until a volume is shown; return the level of the thermometer, None where there is fixation."""
        deadline = time.monotonic() + PATIENCE_S
        while not (told := self.look()).startswith(f"volume {volume}:"):
            assert time.monotonic() < deadline, f"expected volume {volume} on the screen, got {told!r}"
            time.sleep(0.002)
        step = re.search(r"step (\d+) of (\d+)", told)
        return None if step is None else int(step[1]) / int(step[2])


@contextmanager
def asyncio_loop(addresses: tuple[str, str], run: int) -> Iterator[Screen]:
    loop, shown = example("asyncio_loop/loop.py"), [""]
    loop.RUN = run
    running = threading.Thread(target=lambda: asyncio.run(loop.main(*addresses, show=shown.append)), daemon=True)
    running.start()
    yield Screen(lambda: shown[-1])
    running.join(PATIENCE_S)
    assert not running.is_alive()


@contextmanager
def octave_loop(octave: str, port: int, run: int, folder: Path) -> Iterator[Screen]:
    script = (EXAMPLES / "matlab_loop" / "loop.m").read_text(encoding="utf-8")
    script = script.replace(":8766", f":{port}").replace("run = 1;", f"run = {run};")
    # a pipe is no terminal: Octave would keep what it prints
    (folder / "loop.m").write_text(script.replace("volume, step);", "volume, step); fflush(stdout);"))
    shown = [""]
    with (folder / "octave.log").open("w") as errors:
        process = subprocess.Popen([octave, "loop.m"], cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    reading = threading.Thread(target=shown.extend, args=(process.stdout,), daemon=True)
    reading.start()
    yield Screen(lambda: shown[-1])
    assert process.wait(PATIENCE_S) == 0, (folder / "octave.log").read_text()
    reading.join(PATIENCE_S)
    process.stdout.close()


@contextmanager
def jspsych_loop(browser: Any, port: int, pages: Path, run: int) -> Iterator[Screen]:
    from selenium.webdriver.support.wait import WebDriverWait

    script = (pages / "jspsych.js").read_text(encoding="utf-8")
    (pages / "jspsych.js").write_text(script.replace("RUN = 1", f"RUN = {run}"))
    browser.get(f"http://127.0.0.1:{port}/jspsych.html")
    browser.execute_script(WATCH)
    yield Screen(lambda: str(browser.execute_script("return window.seen || ''")))
    WebDriverWait(browser, PATIENCE_S, 0.05).until(lambda b: b.title == "done")
    assert browser.get_log("browser") == []


def settings_for(folder: Path, addresses: tuple[str, str]) -> Path:
    (folder / "export").mkdir()
    raw = {
        "session": {"participant": "sim", "output": "."},
        "scanner": {"export_dir": "export"},
        "estimate": {"regions": {"visual": "region.nii.gz"}},
        "feedback": {
            "score": "region", "regions": ["visual"], "baseline_volumes": 6, "bounds": [-1.0, 3.0], "deadline_s": 60.0,
        },
        "publish": {"stream": addresses[0], "requests": addresses[1]},
    }  # fmt: skip
    (folder / "session.toml").write_text(tomli_w.dumps(raw))
    return folder / "session.toml"


def test_a_participant_learns_from_what_each_example_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(sys.modules, "client", wire)
    addresses = (f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
    settings = settings_for(tmp_path, addresses)
    participant, regulator = regulating(4, PROTOCOL, 100, tmp_path / "region.nii.gz")
    pages = shutil.copytree(EXAMPLES / "browser_loop", tmp_path / "pages")
    octave = shutil.which("octave-cli")
    with ExitStack() as stack:
        daemon = stack.enter_context(started("run", str(settings), stdout=subprocess.PIPE))
        assert daemon.stdout is not None
        stack.enter_context(daemon.stdout)
        assert "stream tcp" in daemon.stdout.readline()
        gateway = stack.enter_context(running(addresses, pages))
        loops: list[Callable[[int], Any]] = [lambda run: asyncio_loop(addresses, run)]
        if octave is not None:
            loops.append(lambda run: octave_loop(octave, gateway.port, run, tmp_path))
        if JSPSYCH:
            shutil.copytree(JSPSYCH, pages / "jspsych")
            browser = request.getfixturevalue("browser")
            loops.append(lambda run: jspsych_loop(browser, gateway.port, pages, run))
        plan = plan_of(4, runs=len(loops), blocks=BLOCKS)
        shown: list[int] = []
        screen = ExitStack()
        present: list[Screen] = []

        def begin(run: int) -> None:
            screen.close()  # the experiment of the run before is over
            present[:] = [screen.enter_context(loops[run - 1](run))]

        def look(run: int, volume: int) -> None:
            level = present[0].at(volume)
            if level is not None:
                regulator.see(level)
            if volume >= FIRST and (volume - FIRST) % EVERY == EVERY - 1:
                shown.append(round(20 * (level or 0.0)))

        noise = NoiseParameters(spikes=0)
        scanner = Scanner(
            plan, participant, tmp_path / "export", SystemClock(), "max", noise=noise, regulator=regulator
        )
        scanner.play(lambda _: None, begin, look)
        screen.close()
        daemon.kill()  # what was told is in the journal; an orderly end draws plots, longer than the scan took
        daemon.wait()
    journal = tmp_path / "sub-sim_ses-01" / "journal"
    trials = [one for one in read_inputs(journal / "inputs.journal") if isinstance(one, TrialEntry)]
    outputs = [wire.unpack(one.topic.encode(), one.payload) for _, one in read_outputs(journal / "outputs.journal")]
    signals = {(m.run, m.volume): m.regions["visual"] for m in outputs if isinstance(m, wire.Volume)}
    blocks = [(run, FIRST + EVERY * block) for run in range(1, plan.runs + 1) for block in range(BLOCKS)]
    assert [(trial.run, trial.onset_s) for trial in trials] == [(run, T_R_S * at) for run, at in blocks]
    seen = [f"seen-{step}" for step in shown]
    assert [trial.condition for trial in trials] == [
        "seen-0" if place % BLOCKS == 0 else seen[place - 1] for place in range(len(trials))
    ]
    evoked = [np.mean([signals[run, at + late] for late in range(4, BLOCK + 2)]) for run, at in blocks]
    assert np.corrcoef(evoked, regulator.tries)[0, 1] > 0.7, "the volumes hold what the participant does"
    assert regulator.skill > 0.4, "and what the participant does is learned from the screen"
