"""The course of a demo: prepare, start the processes, scan, wait for the last picture, sum up."""

from __future__ import annotations

import json as jsonlib
import time
import webbrowser
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
from rtdecode.demo.processes import Processes, free_port
from rtdecode.demo.sources import RecordedVisit, SimulatedVisit, Visit
from rtdecode.demo.summary import print_summary, summarise
from rtdecode.errors import RtdecodeError
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
            visit = SimulatedVisit(out, clock, seed=options.seed, shuffle_labels=options.shuffle_labels)
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
        processes.start("daemon", "run", str(settings_path))
        _wait_for_daemon(addresses, processes)
        processes.start("calibration", "calibrate", str(settings_path))
        _start_page(processes, addresses, settings.decode.stimuli, options, console)
        with Collector(*addresses) as collector, Client(*addresses, topics=["session"]) as announcer:
            _scan(visit, options, collector, announcer, processes, console)
            code = processes.stop("daemon")
            if code != 0:
                raise RtdecodeError(f"the daemon ended with exit code {code}; see {out / 'logs' / 'daemon.log'}")
    summary = summarise(visit, settings, collector.collected)
    summary["elapsed_s"] = round(clock.monotonic() - began, 1)
    if options.json is not None:
        options.json.write_text(jsonlib.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print_summary(summary, console)
    return 0


def _wait_for_daemon(addresses: list[str], processes: Processes) -> None:
    with Client(*addresses, topics=["session"], timeout_s=1.0) as client:
        while True:
            processes.check()
            try:
                client.ping()
            except TimeoutError:
                continue
            return


def _start_page(
    processes: Processes, addresses: list[str], stimuli: Path | None, options: DemoOptions, console: Console
) -> None:
    port = options.port or free_port()
    arguments = ["--stream", addresses[0], "--requests", addresses[1], "--port", str(port), "--no-browser"]
    if stimuli is not None:
        arguments += ["--stimuli", str(stimuli)]
    processes.start("display", "display", *arguments)
    address = f"http://127.0.0.1:{port}/"
    console.print(f"page: [bold]{address}[/]")
    if options.open_browser:
        webbrowser.open(address)


def _scan(
    visit: Visit,
    options: DemoOptions,
    collector: Collector,
    announcer: Client,
    processes: Processes,
    console: Console,
) -> None:
    """Let the scanner run, then wait for the last decoded trial, with progress all along."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bars = {name: progress.add_task(name, total=total) for name, total in visit.totals.items()}

        written = 0

        def patiently(reached: Callable[[Collected], bool], what: str) -> None:
            seen = collector.collected.received
            deadline = time.monotonic() + SILENCE_S
            while not collector.wait(reached, 0.25):
                processes.check(may_end=("calibration",))
                _advance(progress, bars, collector.collected)
                if collector.collected.received != seen:
                    seen, deadline = collector.collected.received, time.monotonic() + SILENCE_S
                if time.monotonic() > deadline:
                    raise RtdecodeError(f"{what}: nothing came for {SILENCE_S:.0f} s; see the logs in {options.out}")

        def announce(message: dict[str, Any]) -> None:
            announcer.event(**message)
            _advance(progress, bars, collector.collected)
            if message["kind"] == "run_start":
                processes.check(may_end=("calibration",))
                collector.collected.expected += message["expected_volumes"]

        def keep_pace(run: int, volume: int) -> None:
            """Write no volume before the daemon has nearly caught up: a scanner is not faster than the line."""
            nonlocal written
            written += 1
            patiently(lambda c: c.received + c.skipped > written - VOLUMES_AHEAD, f"run {run}, volume {volume}")

        def hold(run: int) -> Speed:
            """Begin no run before the daemon has closed the last: scanners pause between runs."""
            patiently(lambda c: run == 1 or run - 1 in c.runs_ended, f"waiting for the end of run {run - 1}")
            if run <= visit.calibration_runs:
                return options.calibration_speed
            patiently(lambda c: c.mode == "decode", "waiting for the calibration")
            return options.decoding_speed

        visit.play(announce, hold, keep_pace)
        patiently(lambda c: visit.runs in c.runs_ended, "waiting for the last volume")
        patiently(
            lambda c: sum(t.done for t in c.trials.values()) >= visit.decoded_trials,
            "waiting for the last picture",
        )
        _advance(progress, bars, collector.collected)


def _advance(progress: Progress, bars: dict[str, Any], seen: Collected) -> None:
    done = sum(trial.done for trial in seen.trials.values())
    for name, value in zip(bars, (seen.received + seen.skipped, seen.calibration_trials, done), strict=True):
        progress.update(bars[name], completed=value)
