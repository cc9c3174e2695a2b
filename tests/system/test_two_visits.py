"""Two visits in a row, with an experiment's client and the page left open all the time; real processes and sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.demo.collector import ClientThread
from rtdecode.demo.processes import free_port
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.playback import Speed
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.page import Page
from tests.system.line_harness import PLAN, PROTOCOL

PATIENCE_S = 300.0
DAYS = (PLAN, replace(PLAN, seed=6, calibration_runs=0, decoding_runs=2))
"""The second decodes pictures that the first has never shown, from its first trial on."""


class Listener(ClientThread):
    """An experiment's client that asks for every topic and stays."""

    def __init__(self, addresses: tuple[str, str]) -> None:
        super().__init__(*addresses)
        self.seen: list[wire.Message] = []

    def take(self, message: wire.Message) -> None:
        if not isinstance(message, wire.Heartbeat):
            self.seen.append(message)

    def of(self, kind: type[wire.Message], session: str, **fields: object) -> list[Any]:
        """Messages of a kind and a session that have these fields."""
        return [
            m
            for m in list(self.seen)
            if type(m) is kind and m.session.startswith(session) and all(getattr(m, k) == v for k, v in fields.items())
        ]

    def await_(self, kind: type[wire.Message], session: str, **fields: object) -> None:
        """Wait for such a message."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.of(kind, session, **fields), PATIENCE_S), (kind, session, fields)


class Visits:
    """One participant and one pair of addresses.

    Parameters
    ----------
    out : Path
        Must exist and be empty.
    plans : tuple of VisitPlan
        Of each visit; only the first is calibrated.
    speed : float or "max"
        Of the scanner, which waits for nobody.
    """

    def __init__(self, out: Path, plans: tuple[VisitPlan, ...] = DAYS, speed: Speed = "max") -> None:
        self._out = out
        self._plans = plans
        self._speed = speed
        self.addresses = (f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
        self._participant = make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=60))

    def bundle(self, visit: int) -> Path:
        """Where the calibration of a visit writes its bundle."""
        return self._out / f"sub-sim_ses-{visit:02d}" / "bundle"

    def settings(self, visit: int) -> Path:
        """Write the settings of a visit, as a person would: what is not needed is left as by default."""
        plan = self._plans[visit - 1]
        day = self._out / f"day-{visit}"
        (day / "export").mkdir(parents=True)
        plan.write_stimuli(day / "stimuli")
        raw: dict[str, Any] = {
            "session": {"participant": "sim", "session": f"{visit:02d}", "output": "."},
            "scanner": {"export_dir": f"day-{visit}/export"},
            "decode": {"stimuli": f"day-{visit}/stimuli"},
            "publish": dict(zip(("stream", "requests"), self.addresses, strict=True)),
        }
        if plan.calibration_runs:
            raw["calibration"] = {"runs": plan.calibration_runs}
        else:
            raw["decode"]["bundle"] = str(self.bundle(visit - 1))
        path = self._out / f"settings-{visit}.toml"
        path.write_text(tomli_w.dumps(raw))
        return path

    def run(self, visit: int, listener: Listener) -> int:
        """Scan one visit and end it by Ctrl-C; return the exit code of the daemon."""
        plan = self._plans[visit - 1]
        settings = self.settings(visit)
        scanner = Scanner(
            plan, self._participant, self._out / f"day-{visit}" / "export", SystemClock(), self._speed, live_dates=True
        )
        with started("run", str(settings)) as daemon, wire.Client(*self.addresses, topics=()) as experiment:
            listener.await_(wire.Session, f"sim-{visit:02d}", state="running")
            calibration = None
            if plan.calibration_runs:
                calibration = subprocess.Popen([sys.executable, "-m", "rtdecode", "calibrate", str(settings)])
            scanner.play(lambda message: experiment.event(**message))
            listener.await_(wire.Volume, f"sim-{visit:02d}", run=plan.runs, volume=plan.volumes_per_run - 1)
            if calibration is not None:
                assert calibration.wait(PATIENCE_S) == 0
            daemon.send_signal(signal.SIGINT)
            return daemon.wait(PATIENCE_S)


@contextmanager
def started(*arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Run an `rtdecode` command; it is gone in the end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, "-m", "rtdecode", *arguments], env=environment, text=True, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def page(addresses: tuple[str, str]) -> Iterator[str]:
    """Keep the page open; yield its address."""
    where = ("--stream", addresses[0], "--requests", addresses[1], "--port", "0", "--no-browser")
    with started("display", *where, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout:
            yield process.stdout.readline().split()[-1]


def comes_to_show_the_second(address: str, plans: tuple[VisitPlan, ...] = DAYS) -> bool:
    """Whether the page shows the second visit and nothing of the first before patience ends."""
    deadline = time.monotonic() + PATIENCE_S / 10
    with Page(address) as told:
        while time.monotonic() < deadline:
            told.follow()
            if shows_second(told.board, plans):
                return True
    return False


def shows_second(state: dict[str, Any], plans: tuple[VisitPlan, ...]) -> bool:
    session, trials = state["session"], {entry["trial"] for entry in state["trials"]}
    told = tuple(session.get(name) for name in ("state", "mode", "calibration_runs"))
    return told == ("ended", "decode", 6) and bool(trials) and trials <= {trial.trial for trial in plans[1].trials}


def unfinished(listener: Listener, plans: tuple[VisitPlan, ...] = DAYS) -> dict[int, set[str]]:
    """Return by visit the trials whose last word has not come: a score, or in calibration a beta."""
    missing = {}
    for visit, plan in enumerate(plans, 1):
        session = f"sim-{visit:02d}"
        told: dict[bool, set[str]] = {
            decoded: {m.trial for m in listener.of(wire.Score if decoded else wire.Beta, session, final=True)}
            for decoded in (True, False)
        }
        missing[visit] = {t.trial for t in plan.trials if t.trial not in told[t.run > plan.calibration_runs]}
    return missing


def out_of_order(listener: Listener) -> list[tuple[str, str]]:
    """Return the sessions and topics whose messages did not all come once and in order."""
    seqs: dict[tuple[str, str], list[int | None]] = {}
    for message in listener.seen:
        seqs.setdefault((message.session, wire.topic_of(message)), []).append(message.seq)
    return [name for name, found in seqs.items() if found != list(range(len(found)))]


@pytest.mark.system
def test_every_trial_of_two_visits_has_its_last_word_and_the_page_shows_the_second(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    with Listener(visits.addresses) as listener, page(visits.addresses) as address:
        codes = [visits.run(visit, listener) for visit in (1, 2)]
        for session in ("sim-01", "sim-02"):
            listener.await_(wire.Session, session, state="ended")
        second = comes_to_show_the_second(address)
    assert codes == [0, 0]
    assert unfinished(listener) == {1: set(), 2: set()}
    assert out_of_order(listener) == []
    assert {m.invalid for m in listener.of(wire.Score, "sim-02", final=True)} == {None}
    assert {m.mode for m in listener.of(wire.Session, "sim-02")} == {"decode"}
    assert second
