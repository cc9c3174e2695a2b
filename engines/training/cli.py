"""`engines train`, `engines distill` and `engines latents`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from rtdecode.bundle import open_pack

if TYPE_CHECKING:
    from engines.training.loop import Fitted

_PICTURES = {
    "prior": "safetensors file with tokens of pictures",
    "unclip": "safetensors file of engines embed --unclip-latents: tokens and latent of pictures",
}
_GUIDANCE = {"prior": 1.0, "unclip": 5.0}
_SKIP = {"prior": 5, "unclip": 20}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    train = commands.add_parser("train", help="train ridge, backbone and prior of MindEye2 on several participants")
    train.add_argument("settings", type=Path, help="TOML file; see engines/training/multi_participant.py")
    train.add_argument("--out", type=Path, required=True, help="folder of the pack; checkpoints go beside it")
    train.add_argument("--licence", required=True, help="licence of the weights, for whoever gets the pack")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    train.set_defaults(handler=_train)

    distill = commands.add_parser("distill", help="distil a pack's prior or unCLIP into a student of few steps")
    stages = distill.add_subparsers(required=True, metavar="STAGE")
    for stage in ("prior", "unclip"):
        parser = stages.add_parser(stage, help=f"the {stage}, by consistency distillation")
        parser.add_argument("pack", help="an imported or trained pack: its name or folder")
        parser.add_argument("--pictures", type=Path, required=True, help=_PICTURES[stage])
        if stage == "prior":
            _add_participants(parser)
        parser.add_argument("--out", type=Path, required=True, help="folder of the new pack; checkpoints go beside it")
        parser.add_argument("--steps", type=int, default=10_000)
        parser.add_argument("--batch", type=int, default=16, help="of each process")
        parser.add_argument("--rate", type=float, default=1e-5)
        parser.add_argument("--skip", type=int, default=_SKIP[stage], help="noise levels a solver's step goes down")
        parser.add_argument(
            "--guidance", type=float, default=_GUIDANCE[stage], help="baked into the student; 1 is none"
        )
        parser.add_argument("--ema", type=float, default=0.95)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
        parser.set_defaults(handler=_distill, stage=stage, participant=[])

    latents = commands.add_parser("latents", help="learn image tokens to hidden values, to calibrate within a visit")
    latents.add_argument("pack", help="an imported, trained or exported MindEye2 pack: its name or folder")
    latents.add_argument("--pictures", type=Path, required=True, help="safetensors file with tokens of pictures")
    _add_participants(latents)
    latents.add_argument("--out", type=Path, required=True, help="folder of the new pack")
    latents.add_argument("--components", type=int, default=512, help="of the tokens, at most")
    latents.set_defaults(handler=_latents)


def _add_participants(parser: argparse.ArgumentParser) -> None:
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


def _missing(error: ImportError) -> int:
    print(f"training needs torch, diffusers and accelerate ({error}): pip install '.[gpu]'")
    return 2


def _train(args: argparse.Namespace) -> int:
    try:
        from engines.training.multi_participant import train_from
    except ImportError as error:
        return _missing(error)
    return _told(args.out, *train_from(args.settings, args.out, licence=args.licence, resume=args.resume))


def _distill(args: argparse.Namespace) -> int:
    try:
        from engines.distill import imported_packs as published
        from engines.distill.consistency import Distillation
        from engines.training.loop import Plan
    except ImportError as error:
        return _missing(error)
    order = published.Order(
        pictures=args.pictures,
        participants=args.participant,
        out=args.out,
        guidance=args.guidance,
        batch=args.batch,
        how=Distillation(skip=args.skip, ema=args.ema, huber=0.001),
        plan=Plan(name=f"{args.out.name}-{args.stage}", steps=args.steps, rate=args.rate, seed=args.seed),
        resume=args.resume,
    )
    distil = published.distil_prior if args.stage == "prior" else published.distil_unclip
    return _told(args.out, *distil(args.pack, order))


def _told(out: Path, identity: str, fitted: Fitted) -> int:
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
