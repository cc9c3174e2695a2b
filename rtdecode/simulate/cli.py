"""``rtdecode simulate``: a simulated visit, or recorded files, written into an export folder."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rtdecode.client import Client
from rtdecode.clock import SystemClock
from rtdecode.errors import SettingsError
from rtdecode.settings import load_settings
from rtdecode.simulate.faults import FAULTS, ScannerFault, make_plan, parse_fault
from rtdecode.simulate.playback import Announce, Speed, replayed_at, unheard
from rtdecode.simulate.visit import PROTOCOLS, VisitPlan

_WITH_NULL_RUN = 4
"""Calibration runs from which the last one shows no picture, unless `--null-trials` says otherwise."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``rtdecode``."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulate a scanner and a participant",
        description="Write a simulated visit into a folder, as Siemens mosaic DICOM, or replay real export files; "
        "on request, as a scanner does that misbehaves.",
        epilog="faults, each at one volume:\n" + "\n".join(f"  {name:<13} {what}" for name, what in FAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        type=Path,
        nargs="?",
        metavar="SETTINGS",
        help="TOML file of a session: volumes go to its export folder, and of a visit trials to its daemon",
    )
    parser.add_argument("--out", type=Path, metavar="EXPORT_DIR", help="folder to write to; made if absent")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    parser.add_argument(
        "--visit",
        type=_count,
        default=None,
        help="which visit of the participant: the same brain and pictures, other noise and movements (default 1; 2 "
        "where SETTINGS name decode.bundle)",
    )
    parser.add_argument("--speed", type=speed, default=1.0, help="times real time, or max (default 1)")
    parser.add_argument("--runs", type=_count, default=None, help="runs to acquire (default 8)")
    parser.add_argument(
        "--protocol",
        type=int,
        choices=tuple(PROTOCOLS),
        default=None,
        help="minutes of calibration, followed by 2 runs to decode: "
        + "; ".join(f"{minutes}: calibration.runs = {length.runs}" for minutes, length in PROTOCOLS.items())
        + " (default 6 runs of 3 minutes)",
    )
    parser.add_argument(
        "--null-trials",
        type=_count,
        default=None,
        help="trials of each calibration run that show a picture without content, announced as null (default: all "
        f"of the last calibration run, from {_WITH_NULL_RUN} runs on)",
    )
    parser.add_argument(
        "--stimuli",
        type=Path,
        default=None,
        help="also write the pictures shown into this folder; without SETTINGS and --out, only these",
    )
    parser.add_argument(
        "--requests",
        default=None,
        metavar="ADDRESS",
        help="announce trials to a daemon, tcp://127.0.0.1:PORT",
    )
    parser.add_argument("--key", metavar="FILE", help="key of `rtdecode keys new`, where the daemon asks for keys")
    parser.add_argument(
        "--replay",
        type=Path,
        default=None,
        metavar="DIR",
        help="write the files of this folder instead, in natural order of their names; .gz is unpacked but for NIfTI",
    )
    parser.add_argument(
        "--fault",
        type=fault,
        action="append",
        default=[],
        metavar="NAME[@VOLUME]",
        help="let this go wrong at a volume, counted from 0 over the whole replay, or at one that the seed picks; "
        "may be given again for other volumes",
    )
    parser.add_argument("--files-per-volume", type=int, default=1, help="of a replay (default 1)")
    parser.add_argument("--period", type=float, default=1.5, help="seconds between volumes of a replay (default 1.5)")
    parser.set_defaults(handler=run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


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


def fault(text: str) -> ScannerFault:
    """Parse ``--fault``.

    Raises
    ------
    argparse.ArgumentTypeError
        If there is no such fault, or the volume is no number.
    """
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Simulate a visit, or replay files; return the exit status.

    Raises
    ------
    SettingsError
        If the arguments contradict each other or the files to replay.
    """
    about_a_visit = ("runs", "protocol", "null_trials", "stimuli", "requests", "visit")
    visit_only = {name: getattr(arguments, name) is not None for name in about_a_visit}
    if arguments.replay is not None and any(visit_only.values()):
        given = ", ".join(f"--{name.replace('_', '-')}" for name, is_given in visit_only.items() if is_given)
        raise SettingsError([f"--replay: expected no {given}, which is about a simulated visit"])
    if arguments.settings is not None:
        settings = load_settings(arguments.settings)
        arguments.out = arguments.out or settings.scanner.export_dir
        if arguments.replay is None and settings.decode.bundle is not None:
            arguments.visit = arguments.visit or 2
        if arguments.replay is None:
            arguments.requests = arguments.requests or settings.publish.nearby()[1]
    if arguments.requests is not None and any(fault.kind == "restarted" for fault in arguments.fault):
        raise SettingsError(
            ["--fault restarted: expected --out alone or --replay; no trials are announced for a run that starts again"]
        )
    if arguments.out is None:
        if arguments.stimuli is None or arguments.fault or arguments.requests:
            raise SettingsError(["simulate: expected SETTINGS or --out, or --stimuli alone, got neither"])
        plan = _plan(arguments)
        plan.write_stimuli(arguments.stimuli)
        pictures = {trial.stimulus for trial in plan.trials if trial.scene is not None}
        print(f"{arguments.stimuli}: {len(pictures)} pictures")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    with _experiment(arguments) as announce:
        if arguments.replay is not None:
            _replay(arguments, arguments.replay)
        elif arguments.fault:
            told: list[dict[str, Any]] = []
            with tempfile.TemporaryDirectory() as folder:
                _visit(arguments, Path(folder), "max", told.append)
                _replay(arguments, Path(folder), told, announce)
        else:
            _visit(arguments, arguments.out, arguments.speed, announce)
    return 0


@contextmanager
def _experiment(arguments: argparse.Namespace) -> Iterator[Announce]:
    """Give what announces trials to the daemon that the arguments name, or to nobody."""
    if arguments.requests is None:
        yield unheard
        return
    with Client("", arguments.requests, key=arguments.key) as client:

        def announce(message: dict[str, Any]) -> None:
            client.event(**message)

        yield announce


def _replay(
    arguments: argparse.Namespace, folder: Path, told: Iterable[dict[str, Any]] = (), announce: Announce = unheard
) -> None:
    from rtdecode.simulate.misbehave import FaultyScanner, RecordedExport

    try:
        recording = RecordedExport(folder)
        volumes = recording.volumes(arguments.files_per_volume)
        plan = make_plan(volumes, arguments.fault, seed=arguments.seed, period_s=arguments.period)
    except (FileNotFoundError, ValueError) as error:
        raise SettingsError([str(error)]) from None
    with Progress(*_COLUMNS) as progress:
        task = progress.add_task("replaying", total=len(plan))
        scanner = FaultyScanner(recording, plan, arguments.out, SystemClock(), arguments.speed)
        scanner.play(lambda _: progress.advance(task), replayed_at(told, arguments.period), announce)


def _plan(arguments: argparse.Namespace) -> VisitPlan:
    try:
        plan = VisitPlan(seed=arguments.seed, null_trials_per_run=arguments.null_trials or 0)
        plan = plan if arguments.protocol is None else plan.lasting(arguments.protocol)
    except ValueError as error:
        raise SettingsError([f"--null-trials: {error}"]) from None
    if arguments.runs is not None:
        calibration = min(arguments.runs, plan.calibration_runs)
        plan = replace(plan, calibration_runs=calibration, decoding_runs=arguments.runs - calibration)
    if arguments.null_trials is None and plan.calibration_runs >= _WITH_NULL_RUN:
        plan = replace(plan, null_runs=1)
    return plan


def _visit(arguments: argparse.Namespace, out: Path, speed: Speed, announce: Announce) -> None:
    from rtdecode.simulate.participant import make_participant
    from rtdecode.simulate.scanner import Scanner

    plan = _plan(arguments)
    with Progress(*_COLUMNS) as progress:
        task = progress.add_task("growing a participant", total=plan.runs * plan.volumes_per_run)
        if arguments.stimuli is not None:
            plan.write_stimuli(arguments.stimuli)
        scanner = Scanner(
            plan,
            make_participant(plan.seed),
            out,
            SystemClock(),
            speed,
            live_dates=speed == 1,
            visit=arguments.visit or 1,
        )

        def on_volume(run: int, volume: int) -> None:
            progress.update(task, advance=1, description=f"run {run} of {plan.runs}, volume {volume + 1}")

        scanner.play(announce, on_volume=on_volume)
