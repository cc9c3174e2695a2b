"""`engines finetune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.training.cli import missing
from rtdecode.packs import open_pack
from rtdecode.packs.participant_bundle import NetworkFigures


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; it sets ``handler``."""
    parser = commands.add_parser("finetune", help="fine-tune a pack's networks on the calibration of a finished visit")
    parser.add_argument("pack", help="that the visit was calibrated with: its name or folder")
    parser.add_argument("--session", type=Path, required=True, help="session folder of the visit")
    parser.add_argument("--stimuli", type=Path, help="its pictures, where they have moved")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--rank", type=int, default=8, help="of what is added to each layer, 4 to 16")
    size.add_argument("--full", action="store_true", help="train every weight of these networks instead")
    parser.add_argument("--minutes", type=float, default=3.0, help="that all trainings together may take")
    parser.add_argument("--steps", type=int, default=100, help="of a training, at most")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(handler=_finetune)


def _finetune(args: argparse.Namespace) -> int:
    try:
        from engines.finetune.order import FineTuneOrder, fine_tune
        from engines.finetune.training import Tuning
    except ImportError as error:
        return missing(error)
    order = FineTuneOrder(
        session=args.session,
        stimuli=args.stimuli,
        out=args.out,
        rank=None if args.full else args.rank,
        tuning=Tuning(steps=args.steps, rate=args.rate, minutes=args.minutes, seed=args.seed),
    )
    identity, figures = fine_tune(open_pack(args.pack), order, lambda line: print(line, flush=True))
    print(told(figures))
    print(f"{args.out}: sealed as {identity}")
    return 0


def told(figures: NetworkFigures) -> str:
    """Say what it brought."""
    low, high = figures.error_saved_interval
    gain = figures.percentile - figures.percentile_ridge
    text = (
        f"of {figures.trials} trials set apart: percentile rank {figures.percentile:.1%}, by the ridge alone "
        f"{figures.percentile_ridge:.1%} ({gain:+.1%} [{figures.percentile_gain[0]:+.1%} to "
        f"{figures.percentile_gain[1]:+.1%}]); squared error {-figures.error_saved:+.1%} [{-high:+.1%} to {-low:+.1%}]"
    )
    kept = f"{figures.steps} steps kept" if figures.steps else "no step was surely better: the ridge alone is kept"
    return f"{text}; {kept}"
