"""``rtdecode inspect``: what the files of a scanner hold."""

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
    """Add the command to the parser."""
    parser = subparsers.add_parser("inspect", help="tell what the files of a scanner hold, volume by volume")
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="file or folder, packed with gzip or not")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per volume")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the first volume, all slices")
    parser.add_argument("--settings", type=Path, help="take what files do not tell from [scanner] of this TOML file")
    parser.set_defaults(handler=_inspect)


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
