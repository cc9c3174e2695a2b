"""``rtdecode simulate``: a simulated visit, written into an export folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rtdecode.client import Client
from rtdecode.clock import SystemClock
from rtdecode.simulate.playback import Announce, Speed
from rtdecode.simulate.visit import VisitPlan


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``rtdecode``."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulate a scanner and a participant",
        description="Write a simulated visit into a folder, as Siemens mosaic DICOM.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="EXPORT_DIR", help="folder to write to; made if absent"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    parser.add_argument("--speed", type=speed, default=1.0, help="times real time, or max (default 1)")
    parser.add_argument("--runs", type=int, default=None, help="runs to acquire (default 8)")
    parser.add_argument("--stimuli", type=Path, default=None, help="also write the pictures shown into this folder")
    parser.add_argument(
        "--requests",
        default=None,
        metavar="ADDRESS",
        help="announce trials to a daemon, tcp://127.0.0.1:PORT",
    )
    parser.set_defaults(handler=run)


def speed(text: str) -> Speed:
    """Parse ``--speed``.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is neither a positive number nor ``max``.
    """
    if text == "max":
        return "max"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number or max, got {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Simulate a visit; return the exit status."""
    from rtdecode.simulate.participant import make_participant
    from rtdecode.simulate.scanner import Scanner

    plan = VisitPlan(seed=arguments.seed)
    if arguments.runs is not None:
        calibration = min(arguments.runs, plan.calibration_runs)
        plan = replace(plan, calibration_runs=calibration, decoding_runs=arguments.runs - calibration)
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("growing a participant", total=plan.runs * plan.volumes_per_run)
        if arguments.stimuli is not None:
            plan.write_stimuli(arguments.stimuli)
        scanner = Scanner(
            plan,
            make_participant(plan.seed),
            arguments.out,
            SystemClock(),
            arguments.speed,
            live_dates=arguments.speed == 1,
        )

        def on_volume(run: int, volume: int) -> None:
            progress.update(task, advance=1, description=f"run {run} of {plan.runs}, volume {volume + 1}")

        if arguments.requests is None:
            scanner.play(_silent, on_volume=on_volume)
        else:
            with Client(requests=arguments.requests, topics=()) as client:
                scanner.play(_announcer(client), on_volume=on_volume)
    return 0


def _announcer(client: Client) -> Announce:
    def announce(message: dict[str, Any]) -> None:
        client.event(**message)

    return announce


def _silent(message: dict[str, Any]) -> None:
    """Tell nobody."""
