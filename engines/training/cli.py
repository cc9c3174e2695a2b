"""`engines train` and `engines latents`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from rtdecode.packs import open_pack

if TYPE_CHECKING:
    from engines.training.loop import Fitted


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    train = commands.add_parser("train", help="train ridge, backbone and prior of MindEye2 on several participants")
    train.add_argument("settings", type=Path, help="TOML file; see engines/training/multi_participant.py")
    train.add_argument("--out", type=Path, required=True, help="folder of the pack; checkpoints go beside it")
    train.add_argument("--licence", required=True, help="licence of the weights, for whoever gets the pack")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    train.set_defaults(handler=_train)

    latents = commands.add_parser("latents", help="learn image tokens to hidden values, to calibrate within a visit")
    latents.add_argument("pack", help="an imported, trained or exported MindEye2 pack: its name or folder")
    latents.add_argument("--pictures", type=Path, required=True, help="safetensors file with tokens of pictures")
    add_participants(latents)
    latents.add_argument("--out", type=Path, required=True, help="folder of the new pack")
    latents.add_argument("--components", type=int, default=512, help="of the tokens, at most")
    latents.set_defaults(handler=_latents)


def add_participants(parser: argparse.ArgumentParser) -> None:
    """Add ``--participant N=FILE``."""
    parser.add_argument(
        "--participant",
        type=_participant,
        action="append",
        required=True,
        metavar="N=FILE",
        help="ridge layer of the pack, and a safetensors file with betas and picture; may be repeated",
    )


def _participant(text: str) -> tuple[int, Path]:
    number, _, path = text.partition("=")
    if not number.isdecimal() or not path:
        raise argparse.ArgumentTypeError(f"expected N=FILE, N the number of a ridge layer, got {text!r}")
    return int(number), Path(path)


def missing(error: ImportError) -> int:
    """Say what training needs; returns the exit code."""
    print(f"training needs torch, diffusers and accelerate ({error}): pip install '.[gpu]'")
    return 2


def _train(args: argparse.Namespace) -> int:
    try:
        from engines.training.multi_participant import train_from
    except ImportError as error:
        return missing(error)
    return told(args.out, *train_from(args.settings, args.out, licence=args.licence, resume=args.resume))


def told(out: Path, identity: str, fitted: Fitted) -> int:
    """Say what was sealed; returns the exit code."""
    if identity:  # of several processes, only the first has sealed
        print(f"{out}: sealed as {identity}; {fitted.seconds:.0f} s, {fitted.skipped} steps skipped as not finite")
    return 0


def _latents(args: argparse.Namespace) -> int:
    from engines.embed.latent_fit import Order, learn_latents

    order = Order(pictures=args.pictures, participants=args.participant, components=args.components)
    with Progress() as bar:
        task = bar.add_task("reading tokens", total=1.0)
        learned = learn_latents(open_pack(args.pack), order, args.out, progress=lambda share: bar.advance(task, share))
    rank = f", the rank of the tokens; {args.components} asked" if learned.components < args.components else ""
    print(
        f"{args.out}: sealed as {learned.identity}; {learned.pictures} pictures, {learned.trials} trials, "
        f"{learned.components} components{rank}, held-out R2 {learned.held_out_r2:.3f} (0: no better than the same "
        "hidden values for every picture)"
    )
    return 0
