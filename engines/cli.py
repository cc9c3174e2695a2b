"""The `engines` commands, mounted in the `rtdecode` command through an entry point."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from pathlib import Path

from engines.published import cli as published
from rtdecode.bundle import open_pack


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``engines`` and its sub-commands; each sets ``handler``."""
    parser = subparsers.add_parser("engines", help="train, list and verify engine packs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train-tiny", help="train the tiny pack from nothing (one thread, under 45 minutes)")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints, report, contact sheet and pack")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    train.add_argument("--effort", type=float, default=1.0, help="multiplies the number of steps; 1 is the recipe")
    train.set_defaults(handler=_train_tiny)

    published.register(commands)

    listing = commands.add_parser("list", help="list installed packs")
    listing.set_defaults(handler=_list)

    verify = commands.add_parser("verify", help="check a pack against its manifest")
    verify.add_argument("pack", help="name of an installed pack, or a folder")
    verify.set_defaults(handler=_verify)


def _train_tiny(args: argparse.Namespace) -> int:
    try:
        from engines.tiny.recipe import make_pack
    except ImportError as error:
        print(f"training needs torch, open_clip and onnx ({error}): pip install 'rtdecode[gpu]'")
        return 2
    identity = make_pack(args.out, seed=args.seed, effort=args.effort, resume=args.resume)
    print(f"{args.out / 'pack'}: sealed as {identity}")
    return 0


def _list(_: argparse.Namespace) -> int:
    for point in sorted(entry_points(group="rtdecode.packs"), key=lambda p: p.name):
        print(f"{point.name}\t{point.load()()}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    pack = open_pack(args.pack)
    print(f"{pack.folder}: {pack.name}, sealed as {pack.identity}")
    for stage, spec in pack.config["stages"].items():
        print(f"  {stage}: {', '.join(spec['inputs'])} -> {', '.join(spec['outputs'])}")
    return 0
