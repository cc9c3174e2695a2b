"""The command line of the demo."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rtdecode.demo.film_visit import run_film_demo
from rtdecode.demo.whole_visit import DemoOptions, run_demo
from rtdecode.errors import SettingsError
from rtdecode.simulate.playback import Speed


def register(subparsers: Any) -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="a whole visit on this machine: scan, calibrate, decode, stream, show",
        description="Simulates a visit (or replays a recorded one), calibrates on its first runs, decodes the rest, "
        "streams and shows the results, and ends with a summary.",
    )
    parser.add_argument(
        "--mode",
        choices=("pictures", "imagery", "film"),
        default="pictures",
        help="imagery: pictures are imagined on cue; film: the participant watches films, and closes their eyes for a "
        "while; the page shows the match",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="replay the run folders in DIR instead of simulating")
    parser.add_argument(
        "--calibrate-runs", default=None, metavar="1-4", help="with --data: the first runs, which calibrate"
    )
    parser.add_argument("--speed", default=None, help="'max', or a multiple of real time (default: max while "
                        "calibrating, 4 while decoding)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle-labels", action="store_true", help="control: announce the wrong pictures; nothing "
                        "can then be decoded")  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="serve the page without opening it")
    parser.add_argument("--port", type=int, default=8765, help="port of the page; 0 takes a free one")
    parser.add_argument("--out", type=Path, default=None, help="new folder for everything the demo writes")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the summary as JSON")
    parser.set_defaults(handler=_demo)


def _demo(args: argparse.Namespace) -> int:
    problems = []
    speeds: tuple[Speed, Speed] = ("max", 4.0)
    if args.speed == "max":
        speeds = ("max", "max")
    elif args.speed is not None:
        try:
            factor = float(args.speed)
        except ValueError:
            factor = 0.0
        if factor <= 0:
            problems.append(f"--speed: expected 'max' or a positive number, got {args.speed!r}")
        speeds = (factor, factor)
    if args.data is not None and not args.data.is_dir():
        problems.append(f"--data: expected a folder of runs, found none at {args.data}")
    if args.data is not None and args.shuffle_labels:
        problems.append("--shuffle-labels is for simulated visits")
    if args.data is not None and args.mode == "imagery":
        problems.append("--mode imagery is for simulated visits")
    if args.mode == "film" and (args.data is not None or args.shuffle_labels):
        problems.append("--mode film goes without --data and --shuffle-labels")
    if args.data is None and args.calibrate_runs is not None:
        problems.append("--calibrate-runs goes with --data")
    out = args.out or Path("sessions") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    if out.exists():
        problems.append(f"--out: {out} exists already")
    runs = _runs(args.calibrate_runs or "1-4", problems)
    if problems:
        raise SettingsError(problems)
    options = DemoOptions(
        out=out,
        data=args.data,
        calibrate_runs=runs,
        calibration_speed=speeds[0],
        decoding_speed=speeds[1],
        seed=args.seed,
        shuffle_labels=args.shuffle_labels,
        open_browser=not args.no_browser,
        port=args.port,
        json=args.json,
        imagery=args.mode == "imagery",
    )
    return run_film_demo(options, sys.stdout) if args.mode == "film" else run_demo(options, sys.stdout)


def _runs(text: str, problems: list[str]) -> int:
    """Parse ``1-4``: calibration comes first in a visit, so the runs begin at 1."""
    found = re.fullmatch(r"1(?:-([0-9]{1,3}))?", text)
    if found is None:
        problems.append(f"--calibrate-runs: expected the first runs, like 1-4, got {text!r}")
        return 0
    return int(found[1] or 1)
