"""``rtdecode process``: recorded series through the online estimator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rtdecode.process.offline import Motion, Processed, process_runs
from rtdecode.process.tables import MOTION_FORMATS
from rtdecode.settings import load_estimate

Subparsers = Any  # argparse keeps the type of its sub-parsers private
ENTITIES = {"participant": "sub", "session": "ses", "task": "task"}


def register(subparsers: Subparsers) -> None:
    """Add the command to the parser of ``rtdecode``."""
    parser = subparsers.add_parser(
        "process",
        help="run recorded series through the online estimator",
        description="Motion, quality and, with events, causal single-trial betas of recorded runs, volume by volume "
        "through the code of the daemon. Writes BIDS derivatives.",
    )
    parser.add_argument(
        "bold",
        type=Path,
        nargs="+",
        metavar="BOLD",
        help="4-D NIfTI, folder of DICOM or 3-D NIfTI, or folder of a session",
    )
    parser.add_argument(
        "--events", type=Path, nargs="+", default=[], help="BIDS events.tsv, one a run (a session has its own)"
    )
    parser.add_argument(
        "--trial-types",
        default="",
        metavar="A,B",
        help="rows of the events that are trials (default: all but rest, fixation and the like, and answers)",
    )
    parser.add_argument(
        "--motion",
        nargs="+",
        default=["auto"],
        metavar="auto|none|FILE",
        help="register (auto), take volumes as they lie (none), or also with the motion of these files, one a run "
        f"({MOTION_FORMATS})",
    )
    parser.add_argument("--bundle", type=Path, help="participant bundle: its mask and reference are used")
    parser.add_argument(
        "--settings", type=Path, help="TOML file of a session: its section [estimate] is used, and needs no other"
    )
    for name in ENTITIES:
        parser.add_argument(f"--{name}", type=_label, help=f"BIDS label of the {name}, where the file's name has none")
    parser.add_argument("--mask", type=Path, help="NIfTI mask to use, in the space of the first volume")
    parser.add_argument("--tr", type=float, dest="t_r_s", help="repetition time in seconds, if the files do not tell")
    parser.add_argument(
        "--final-at",
        type=float,
        dest="final_at_s",
        help="seconds after onset of a trial's last beta (default: 8 s after the end of the longest stimulus)",
    )
    parser.add_argument("--every-volume", action="store_true", help="also write a revision for every volume")
    parser.add_argument("--standard-errors", action="store_true", help="also write the standard error of each beta")
    parser.add_argument(
        "--roi", type=Path, nargs="+", default=[], help="masks whose percent signal change is written, volume by volume"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to; made if absent")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Handle the command; returns its exit code."""
    settings = None if arguments.settings is None else load_estimate(arguments.settings)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        found = process_runs(
            arguments.bold,
            events=arguments.events,
            trial_types=[name.strip() for name in arguments.trial_types.split(",") if name.strip()],
            motion=_motion(arguments.motion),
            bundle=arguments.bundle,
            settings=settings,
            t_r_s=arguments.t_r_s,
            final_at_s=arguments.final_at_s,
            every_volume=arguments.every_volume,
            standard_errors=arguments.standard_errors,
            regions=arguments.roi,
            mask=arguments.mask,
            entities={short: value for name, short in ENTITIES.items() if (value := getattr(arguments, name))},
            out=arguments.out,
            progress=progress,
        )
    _report(found, arguments.out)
    return 0


def _label(text: str) -> str:
    if not text.isascii() or not text.isalnum():
        raise argparse.ArgumentTypeError(f"expected letters and digits, without sub-, ses- or task-, got {text!r}")
    return text


def _motion(given: list[str]) -> Motion:
    match given:
        case ["auto"]:
            return "auto"
        case ["none"]:
            return "none"
        case _:
            return [Path(name) for name in given]


def _report(found: Processed, out: Path) -> None:
    table = Table("run", "volumes", "skipped", "mean FD mm", "max FD mm", "tSNR", "trials", "invalid")
    for one in found.runs:
        fd_mm = [volume.fd_mm for volume in one.volumes]
        finals = one.finals
        table.add_row(
            one.name,
            str(one.length),
            str(len(one.skipped)),
            f"{sum(fd_mm) / len(fd_mm):.3f}",
            f"{max(fd_mm):.3f}",
            f"{one.volumes[-1].tsnr:.0f}",
            str(len(finals)),
            str(sum(beta.invalid is not None for beta in finals)),
        )
    Console().print(table)
    print(f"written to {out}")
