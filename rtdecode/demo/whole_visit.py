"""The course of a demo: prepare, start the processes, scan, wait for the last picture, sum up."""

from __future__ import annotations

import json as jsonlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import tomli_w
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from rtdecode.client import Client
from rtdecode.clock import SystemClock
from rtdecode.demo.collector import Collected, Collector
from rtdecode.demo.demo_visits import ImageryVisit, RecordedVisit, SimulatedVisit, Visit
from rtdecode.demo.processes import Processes, free_port
from rtdecode.demo.summary import print_summary, summarise
from rtdecode.errors import RtdecodeError
from rtdecode.publish.display.web import open_page
from rtdecode.settings import parse
from rtdecode.simulate.playback import Speed

SILENCE_S = 120.0
VOLUMES_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for.

    Attributes
    ----------
    out : Path
        New folder for everything that is written.
    data : Path or None
        Run folders of a recorded participant; None simulates one.
    calibrate_runs : int
        Recorded runs that calibrate: the first ones.
    calibration_speed, decoding_speed : float or "max"
        Multiple of real time, or as fast as it goes.
    seed : int
    shuffle_labels : bool
    open_browser : bool
    port : int
        Of the page.
    json : Path or None
        Where the summary goes.
    imagery : bool
        Whether the decoded runs of a simulated visit are of pictures that are imagined.
    """

    out: Path
    data: Path | None
    calibrate_runs: int
    calibration_speed: Speed
    decoding_speed: Speed
    seed: int
    shuffle_labels: bool
    open_browser: bool
    port: int
    json: Path | None
    imagery: bool = False


def run_demo(options: DemoOptions, stream: TextIO) -> int:
    """Run a demo; return its exit code.

    Raises
    ------
    RtdecodeError
        A part failed; tells which and where its log is.
    """
    console = Console(file=stream)
    clock = SystemClock()
    began = clock.monotonic()
    options.out.mkdir(parents=True)
    out = options.out.resolve()
    (out / "export").mkdir()
    visit: Visit
    with console.status("preparing the visit"):
        if options.data is None:
            simulated = ImageryVisit if options.imagery else SimulatedVisit
            visit = simulated(out, clock, seed=options.seed, shuffle_labels=options.shuffle_labels)
        else:
            visit = RecordedVisit(out, clock, options.data, options.calibrate_runs)
    addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    raw = {
        "session": {"participant": visit.participant, "output": ".", "seed": options.seed},
        "scanner": {"export_dir": "export", "poll_s": 0.05, "gap_timeout_s": 10.0},
        "publish": {"stream": addresses[0], "requests": addresses[1]},
        **visit.settings,
    }
    settings_path = out / "settings.toml"
    settings_path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    settings = parse(raw, root=out)
    with Processes(out / "logs") as processes:
        with console.status("starting the daemon"):
            processes.start("daemon", "run", str(settings_path))
            wait_for_daemon(addresses, processes)
        processes.start("calibration", "calibrate", str(settings_path))
        start_page(processes, addresses, settings.decode.stimuli, options, console)
        with Collector(*addresses) as collector, Client(*addresses, topics=["session"]) as announcer:
            course = _Course(visit, options, collector, announcer, processes, console)
            course.run()
            code = processes.stop("daemon")
            if code != 0:
                raise RtdecodeError(f"the daemon ended with exit code {code}; see {out / 'logs' / 'daemon.log'}")
    shutil.rmtree(out / "export")  # the session folder keeps every volume
    with console.status("summing up"):
        summary = summarise(visit, settings, collector.collected, expected=course.expected)
    summary["elapsed_s"] = round(clock.monotonic() - began, 1)
    if options.json is not None:
        options.json.write_text(jsonlib.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print_summary(summary, console)
    return 0


def wait_for_daemon(addresses: list[str], processes: Processes) -> None:
    """Wait until the daemon answers."""
    with Client(*addresses, topics=["session"], timeout_s=1.0) as client:
        while True:
            processes.check()
            try:
                client.ping()
            except TimeoutError:
                continue
            return


def start_page(
    processes: Processes, addresses: list[str], stimuli: Path | None, options: DemoOptions, console: Console
) -> None:
    """Serve the page, and open it if asked to."""
    port = options.port or free_port()
    arguments = ["--stream", addresses[0], "--requests", addresses[1], "--port", str(port), "--no-browser"]
    if stimuli is not None:
        arguments += ["--stimuli", str(stimuli)]
    processes.start("display", "display", *arguments)
    address = f"http://127.0.0.1:{port}/"
    console.print(f"page: [bold]{address}[/]")
    if options.open_browser:
        open_page(address)


class _Course:
    """Lets the scanner run and waits for the last decoded trial, with progress all along."""

    def __init__(
        self,
        visit: Visit,
        options: DemoOptions,
        collector: Collector,
        announcer: Client,
        processes: Processes,
        console: Console,
    ) -> None:
        self._visit = visit
        self._options = options
        self._collector = collector
        self._announcer = announcer
        self._processes = processes
        self._console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, refresh_per_second=4)
        self._bars = {name: self._progress.add_task(name, total=total) for name, total in visit.totals.items()}
        self._written = 0
        self.expected = 0

    def run(self) -> None:
        with self._progress:
            self._visit.play(self._announce, self._hold, self._keep_pace)
            self._wait(lambda seen: self._visit.runs in seen.runs_ended, "waiting for the last volume")
            self._wait(lambda seen: seen.done >= self._visit.decoded_trials, "waiting for the last picture")
            self._show()

    def _announce(self, message: dict[str, Any]) -> None:
        self._announcer.event(**message)
        if message["kind"] == "run_start":
            self.expected += message["expected_volumes"]
        elif message["kind"] == "run_end" and not self._console.is_terminal:
            values = ", ".join(f"{value} {name}" for name, value in self._show().items())
            self._console.print(f"run {message['run']} of {self._visit.runs} scanned: {values}")

    def _hold(self, run: int) -> Speed:
        """Begin no run before the daemon has closed the last: scanners pause between runs."""
        self._wait(lambda seen: run == 1 or run - 1 in seen.runs_ended, f"waiting for the end of run {run - 1}")
        if run <= self._visit.calibration_runs:
            return self._options.calibration_speed
        self._wait(lambda seen: seen.mode == "decode", "waiting for the calibration")
        return self._options.decoding_speed

    def _keep_pace(self, run: int, volume: int) -> None:
        """Write no volume before the daemon has nearly caught up: a scanner is not faster than the line."""
        self._written += 1
        self._wait(
            lambda seen: seen.received + seen.skipped > self._written - VOLUMES_AHEAD, f"run {run}, volume {volume}"
        )
        self._show()

    def _wait(self, reached: Callable[[Collected], bool], what: str) -> None:
        arrived, deadline = -1, 0.0
        while not self._collector.wait(reached, 0.25):
            self._processes.check(may_end=("calibration",))
            values = self._show()
            now = time.monotonic()
            if sum(values.values()) != arrived:
                arrived, deadline = sum(values.values()), now + SILENCE_S
            elif now > deadline:
                raise RtdecodeError(f"{what}: nothing came for {SILENCE_S:.0f} s; see the logs in {self._options.out}")

    def _show(self) -> dict[str, int]:
        seen = self._collector.collected
        values = dict(zip(self._bars, (seen.received + seen.skipped, seen.calibration_trials, seen.done), strict=True))
        for name, value in values.items():
            self._progress.update(self._bars[name], completed=value)
        return values
