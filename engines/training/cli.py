"""`engines train`."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.training.loop import Fitted


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    train = commands.add_parser("train", help="train MindEye2's networks on several participants, or MindEye1's on one")
    train.add_argument(
        "settings",
        type=Path,
        help='TOML file; see engines/training/multi_participant.py, and with kind = "mindeye1" mindeye1_training.py',
    )
    train.add_argument("--out", type=Path, required=True, help="folder of the pack; checkpoints go beside it")
    train.add_argument("--licence", required=True, help="licence of the weights, for whoever gets the pack")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    train.set_defaults(handler=_train)

    carrying = commands.add_parser("carry", help="put a network that was trained for a participant into their bundle")
    carrying.add_argument("bundle", type=Path, help="participant bundle of an earlier visit")
    carrying.add_argument("network", help="imported MindEye1 pack of the participant, with --scaling, no generator")
    carrying.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    carrying.set_defaults(handler=_carry)


def missing(error: ImportError) -> int:
    """Say what training needs; returns the exit code."""
    print(f"training needs torch, diffusers and accelerate ({error}): pip install '.[gpu]'")
    return 2


def _train(args: argparse.Namespace) -> int:
    try:
        from engines.training.mindeye1_training import train_mindeye1
        from engines.training.multi_participant import train_from
    except ImportError as error:
        return missing(error)
    train = train_mindeye1 if _kind(args.settings) == "mindeye1" else train_from
    return told(args.out, *train(args.settings, args.out, licence=args.licence, resume=args.resume))


def _kind(settings: Path) -> object:
    """Tell what is to be trained; what cannot be read is told by whoever reads all of it."""
    try:
        return tomllib.loads(settings.read_text(encoding="utf-8")).get("kind")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None


def _carry(args: argparse.Namespace) -> int:
    from engines.training.carried_network import carry
    from rtdecode.packs import open_pack, open_participant

    identity = carry(open_participant(args.bundle), open_pack(args.network), args.out)
    print(f"{args.out}: sealed as {identity}")
    return 0


def told(out: Path, identity: str, fitted: Fitted) -> int:
    """Say what was sealed; returns the exit code."""
    if identity:  # of several processes, only the first has sealed
        print(f"{out}: sealed as {identity}; {fitted.seconds:.0f} s, {fitted.skipped} steps skipped as not finite")
    return 0
