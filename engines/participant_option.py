"""The command-line option that names participants of a pack."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_participants(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--participant N=FILE``."""
    parser.add_argument(
        "--participant",
        type=_participant,
        action="append",
        required=required,
        default=[],
        metavar="N=FILE",
        help="ridge layer of the pack, and a safetensors file with betas and picture; may be repeated",
    )


def _participant(text: str) -> tuple[int, Path]:
    number, _, path = text.partition("=")
    if not number.isdecimal() or not path:
        raise argparse.ArgumentTypeError(f"expected N=FILE, N the number of a ridge layer, got {text!r}")
    return int(number), Path(path)
