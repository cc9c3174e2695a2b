"""``rtdecode inspect`` tells what the files of a scanner hold, ``rtdecode receive`` takes what it pushes."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdecode.acquire.inspect import Report

Subparsers = Any  # argparse keeps the type of its sub-parsers private


def register(subparsers: Subparsers) -> None:
    """Add the commands to the parser."""
    parser = subparsers.add_parser("inspect", help="tell what the files of a scanner hold, volume by volume")
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="file or folder, packed with gzip or not")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per volume")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the first volume, all slices")
    parser.add_argument("--settings", type=Path, help="take what files do not tell from [scanner] of this TOML file")
    parser.set_defaults(handler=_inspect)

    receive = subparsers.add_parser("receive", help="take images that a console pushes, as a DICOM storage service")
    receive.add_argument(
        "settings", type=Path, nargs="?", metavar="SETTINGS", help="TOML file: images go to its scanner.export_dir"
    )
    receive.add_argument("--out", type=Path, metavar="DIR", help="folder that images go to")
    receive.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    receive.add_argument("--port", type=int, default=11112, help="port; 0 takes a free one (default 11112)")
    receive.add_argument(
        "--ae-title", default="RTDECODE", metavar="TITLE", help="AE title that the console must call (default RTDECODE)"
    )
    receive.add_argument(
        "--calling",
        action="append",
        default=[],
        metavar="TITLE",
        help="AE title that may call, again for others (default: all)",
    )
    receive.add_argument(
        "--from",
        dest="addresses",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address that may connect, again for others; needed beside a --host that other machines reach",
    )
    receive.set_defaults(handler=_receive)


def _receive(args: argparse.Namespace) -> int:
    import signal
    import threading

    from rtdecode.acquire.receiver import Receiver, Reception
    from rtdecode.errors import SettingsError
    from rtdecode.settings import load_settings

    if (args.settings is None) == (args.out is None):
        raise SettingsError(["receive: expected either SETTINGS or --out, got both or neither"])
    reception = Reception(
        folder=args.out or load_settings(args.settings).scanner.export_dir,
        host=args.host,
        port=args.port,
        title=args.ae_title,
        callers=tuple(args.calling),
        addresses=tuple(args.addresses),
    )
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with Receiver(reception) as receiver:
        print(
            f"rtdecode receive: {args.ae_title} at {args.host} port {receiver.port}, to {reception.folder}", flush=True
        )
        over.wait()
    return 0


def _inspect(args: argparse.Namespace) -> int:
    import msgspec
    import numpy as np
    from PIL import Image

    from rtdecode.acquire.inspect import inspect, picture
    from rtdecode.settings import load_scanner

    t_r_s, affine = None, None
    if args.settings is not None:
        scanner = load_scanner(args.settings)
        t_r_s = scanner.t_r_s
        affine = None if scanner.affine is None else np.array([*scanner.affine, (0.0, 0.0, 0.0, 1.0)])
    found = inspect(args.paths, t_r_s=t_r_s, affine=affine)
    if args.json:
        for report in found.reports:
            print(msgspec.json.encode(report).decode())
    else:
        _table(found.reports)
    for reason in found.refused:
        print(reason, file=sys.stderr)
    if args.png is not None and found.first is not None:
        Image.fromarray(picture(found.first)).save(args.png, format="PNG")
    if not found.reports:
        print("no volume found", file=sys.stderr)
    return 0 if found.reports else 1


def _table(reports: Sequence[Report]) -> None:
    """Print a table per series, and under it what was noticed."""
    from rich.console import Console
    from rich.table import Table

    from rtdecode.acquire.inspect import voxel_sizes_mm

    console = Console()
    for uid, series in itertools.groupby(reports, key=lambda report: report.series_uid):
        volumes = list(series)
        told = volumes[0]
        made = f"{told.vendor or 'vendor unknown'}, {told.software or 'software unknown'}, {told.format}"
        table = Table("volume", "shape", "mm", "TR s", "slices s", "acquired", "echo", title=f"{made}\n{uid}")
        noticed: dict[str, list[int]] = {}
        for report in volumes:
            sizes, times = voxel_sizes_mm(report), report.slice_times_s
            table.add_row(
                str(report.volume_index),
                "x".join(map(str, report.shape)),
                "?" if sizes is None else " ".join(f"{size:.3g}" for size in sizes),
                "?" if report.t_r_s is None else f"{report.t_r_s:.6g}",
                "?" if times is None else f"0 to {max(times):.4g}",
                report.acquired_at or "?",
                "" if report.echo is None else str(report.echo),
            )
            for problem in report.problems:
                noticed.setdefault(problem, []).append(report.volume_index)
        console.print(table, markup=False)
        for problem, where in noticed.items():
            first, last = min(where), max(where)
            which = f"volume {first}" if first == last else f"volumes {first} to {last}"
            console.print(f"  {which}: {problem}", markup=False)
