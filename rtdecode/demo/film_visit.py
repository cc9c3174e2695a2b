"""The demo with films: a participant who watches two, and closes their eyes for a while in the second."""

from __future__ import annotations

import json as jsonlib
import shutil
import time
from typing import Any, TextIO

import numpy as np
import tomli_w
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rtdecode import client as wire
from rtdecode.client import Client
from rtdecode.clock import SystemClock
from rtdecode.demo.collector import ClientThread
from rtdecode.demo.processes import Processes, free_port
from rtdecode.demo.whole_visit import SILENCE_S, VOLUMES_AHEAD, DemoOptions, start_page, wait_for_daemon
from rtdecode.errors import RtdecodeError
from rtdecode.packs.film_prediction import write_prediction
from rtdecode.simulate.film import FilmPlan, parcel_labels, predict_film, write_labels
from rtdecode.simulate.participant import make_participant
from rtdecode.simulate.playback import Speed
from rtdecode.simulate.scanner import Scanner

OTHERS = 3
"""People whose responses the prediction is made of."""
CLOSED_S = (120.0, 180.0)
"""Seconds of the second run from and to which the eyes are closed."""
_WINDOW = 20
_RESPONSE_S = 6.0


class _Matches(ClientThread):
    """Collects the matches of a demo."""

    def __init__(self, stream: str, requests: str) -> None:
        super().__init__(stream, requests, from_start=True)
        self.found: list[wire.StimulusMatch] = []
        self.volumes = 0
        self.ended: set[int] = set()
        self.faults: list[str] = []

    def take(self, message: wire.Message) -> None:
        """Take a message."""
        match message:
            case wire.StimulusMatch():
                self.found.append(message)
            case wire.Volume() | wire.Skipped():
                self.volumes += 1
            case wire.Run() if message.state == "ended":
                self.ended.add(message.run or 0)
            case wire.Fault():
                self.faults.append(message.reason)
            case _:
                pass


def run_film_demo(options: DemoOptions, stream: TextIO) -> int:
    """Run the demo; return its exit code.

    Raises
    ------
    RtdecodeError
        A part failed; tells which and where its log is.
    """
    console, clock = Console(file=stream), SystemClock()
    began = clock.monotonic()
    options.out.mkdir(parents=True)
    out = options.out.resolve()
    (out / "export").mkdir()
    plan = FilmPlan(seed=options.seed, volumes_per_run=180, closed_s=((2, *CLOSED_S),))
    with console.status("preparing the films and what is predicted of them"):
        participant = make_participant(options.seed)
        labels = parcel_labels(participant)
        write_labels(participant, labels, out / "parcels.nii.gz")
        participant.write_region(out / "region.nii.gz")
        others = [make_participant(options.seed + 1000 + number) for number in range(OTHERS)]
        films = {plan.film(run): f"films/{plan.film(run)}" for run in range(1, plan.runs + 1)}
        for run, folder in enumerate(films.values(), 1):
            write_prediction(out / folder, predict_film(plan, run, labels, others))
        scanner = Scanner(plan, participant, out / "export", clock)
    addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    raw = {
        "session": {"participant": f"sim{options.seed}", "output": ".", "seed": options.seed},
        "scanner": {"export_dir": "export", "gap_timeout_s": 10.0},
        "estimate": {"mask": "region.nii.gz", "parcels": {"blocks": "parcels.nii.gz"}},
        "film": {"predictions": films, "parcels": "blocks", "window": _WINDOW},
        "publish": {"stream": addresses[0], "requests": addresses[1]},
    }
    settings = out / "settings.toml"
    settings.write_text(tomli_w.dumps(raw), encoding="utf-8")
    with Processes(out / "logs") as processes:
        with console.status("starting the daemon"):
            processes.start("daemon", "run", str(settings))
            wait_for_daemon(addresses, processes)
        start_page(processes, addresses, None, options, console)
        with _Matches(*addresses) as matches, Client(*addresses, topics=["session"]) as announcer:
            _scan(plan, scanner, matches, announcer, processes, options, console)
            code = processes.stop("daemon")
            if code != 0:
                raise RtdecodeError(f"the daemon ended with exit code {code}; see {out / 'logs' / 'daemon.log'}")
    shutil.rmtree(out / "export")  # the session folder keeps every volume
    summary = _summed_up(plan, matches, options.seed)
    summary["elapsed_s"] = round(clock.monotonic() - began, 1)
    if options.json is not None:
        options.json.write_text(jsonlib.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _print(summary, console)
    return 0


def _scan(
    plan: FilmPlan,
    scanner: Scanner,
    matches: _Matches,
    announcer: Client,
    processes: Processes,
    options: DemoOptions,
    console: Console,
) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    written = 0
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bar = progress.add_task("volumes", total=plan.runs * plan.volumes_per_run)

        def wait(reached: Any, what: str) -> None:
            seen, deadline = -1, 0.0
            while True:
                with matches.changed:
                    if matches.changed.wait_for(reached, 0.25):
                        return
                processes.check()
                now = time.monotonic()
                if matches.volumes != seen:
                    seen, deadline = matches.volumes, now + SILENCE_S
                elif now > deadline:
                    raise RtdecodeError(f"{what}: nothing came for {SILENCE_S:.0f} s; see the logs in {options.out}")

        def hold(run: int) -> None:
            wait(lambda: run == 1 or run - 1 in matches.ended, f"waiting for the end of run {run - 1}")
            speeds: tuple[Speed, Speed] = (options.calibration_speed, options.decoding_speed)
            scanner.set_speed(speeds[run > 1])

        def keep_pace(run: int, volume: int) -> None:
            nonlocal written
            written += 1
            wait(lambda: matches.volumes > written - VOLUMES_AHEAD, f"run {run}, volume {volume}")
            progress.update(bar, completed=matches.volumes)

        def announce(message: dict[str, Any]) -> None:
            announcer.event(**message)

        scanner.play(plan.announcing(announce), hold, keep_pace)
        wait(lambda: plan.runs in matches.ended, "waiting for the last volume")


def _summed_up(plan: FilmPlan, matches: _Matches, seed: int) -> dict[str, Any]:
    """Mean rank of the windows that lie wholly in each stretch, delay of the response considered."""
    last = plan.volumes_per_run * plan.t_r_s
    stretches = {
        "first film, not calibrated": (1, 0.0, last),
        "second film, followed": (2, 0.0, CLOSED_S[0]),
        "eyes closed": (2, *CLOSED_S),
        "eyes open again": (2, CLOSED_S[1], last),
    }
    rows = []
    for name, (run, begin_s, end_s) in stretches.items():
        first = (begin_s + (_RESPONSE_S if begin_s else 0.0)) / plan.t_r_s + _WINDOW
        some = [
            one
            for one in matches.found
            if one.invalid is None and one.run == run and first <= (one.volume or 0) < end_s / plan.t_r_s
        ]
        if some:
            rows.append(
                {
                    "stretch": name,
                    "z": round(float(np.mean([one.z for one in some])), 2),
                    "rank": round(float(np.mean([one.rank for one in some])), 3),
                    "volumes": len(some),
                }
            )
    claims = {f"run {run}": max((one.claim for one in matches.found if one.run == run), default=1.0) for run in (1, 2)}
    told = len({(one.run, one.volume) for one in matches.found})
    return {"seed": seed, "volumes": matches.volumes, "matches": told, "stretches": rows, "claims": claims,
            "faults": matches.faults}  # fmt: skip


def _print(summary: dict[str, Any], console: Console) -> None:
    table = Table("", "match, z", "better than so many other times (chance 50 %)", title="stimulus match")
    for row in summary["stretches"]:
        table.add_row(row["stretch"], f"{row['z']:.1f}", f"{row['rank']:.0%}")
    console.print(table)
    for run, claim in summary["claims"].items():
        console.print(f"{run}: evidence that the film was followed {claim:.3g}" + (" (it was)" if claim >= 20 else ""))
    for fault in summary["faults"]:
        console.print(f"fault: {fault}")
