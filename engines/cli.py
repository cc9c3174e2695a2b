"""The `engines` commands, mounted in the `rtdecode` command through an entry point."""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.compile import cli as compiling
from engines.distill import cli as distilling
from engines.embed import cli as embedding
from engines.film import cli as film
from engines.finetune import cli as finetuning
from engines.importing import cli as importing
from engines.pool import cli as pooling
from engines.training import cli as training


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``engines`` and its sub-commands, and ``encode``; each sets ``handler``."""
    parser = subparsers.add_parser("engines", help="make, check and measure engine packs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train-tiny", help="train the tiny pack from nothing (no GPU)")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints, report, contact sheet and pack")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    train.add_argument(
        "--threads",
        type=_count,
        default=1,
        help="cores to use; another number gives other weights, and may be slower beside other work",
    )
    train.add_argument("--effort", type=float, default=1.0, help="multiplies the number of steps; 1 is the recipe")
    train.add_argument(
        "--lose",
        type=float,
        default=2.0,
        metavar="POINTS",
        help="of two-way identification that the students may lose against their teachers; else nothing is sealed",
    )
    train.set_defaults(handler=_train_tiny)

    film.register(subparsers)
    film.register_features(commands)
    for part in (importing, training, finetuning, distilling, embedding, pooling, compiling):
        part.register(commands)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _train_tiny(args: argparse.Namespace) -> int:
    try:
        from engines.tiny.whole_recipe import make_pack
    except ImportError as error:
        print(f"training needs torch, open_clip and onnx ({error}): pip install '.[gpu]'")
        return 2
    identity = make_pack(
        args.out, seed=args.seed, effort=args.effort, resume=args.resume, threads=args.threads, lose=args.lose
    )
    print(f"{args.out / 'pack'}: sealed as {identity}")
    return 0
