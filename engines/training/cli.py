"""`engines train` and `engines distill`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdecode.bundle import open_pack

_DATA = {
    "prior": "safetensors file with tokens and condition (n, tokens, dim): of pictures, and the backbone's",
    "unclip": "safetensors file with latent (n, 4, h, w), scaled, and tokens (n, tokens, dim) of pictures",
}
_GUIDANCE = {"prior": 1.0, "unclip": 5.0}
_SKIP = {"prior": 5, "unclip": 20}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``handler``."""
    train = commands.add_parser("train", help="train ridge, backbone and prior of MindEye2 on several participants")
    train.add_argument("settings", type=Path, help="TOML file; see engines/training/run.py")
    train.add_argument("--out", type=Path, required=True, help="folder of the pack; checkpoints go beside it")
    train.add_argument("--licence", required=True, help="licence of the weights, for whoever gets the pack")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    train.set_defaults(handler=_train)

    distill = commands.add_parser("distill", help="distil a pack's prior or unCLIP into a student of few steps")
    stages = distill.add_subparsers(required=True, metavar="STAGE")
    for stage in ("prior", "unclip"):
        parser = stages.add_parser(stage, help=f"the {stage}, by consistency distillation")
        parser.add_argument("pack", help="an imported or trained pack: its name or folder")
        parser.add_argument("--data", type=Path, required=True, help=_DATA[stage])
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
        parser.set_defaults(handler=_distill, stage=stage)


def _missing(error: ImportError) -> int:
    print(f"training needs torch, diffusers and accelerate ({error}): pip install 'rtdecode[gpu]'")
    return 2


def _train(args: argparse.Namespace) -> int:
    try:
        from engines.training.run import train_from
    except ImportError as error:
        return _missing(error)
    identity, fitted = train_from(args.settings, args.out, licence=args.licence, resume=args.resume)
    print(f"{args.out}: sealed as {identity}; {fitted.seconds:.0f} s, {fitted.skipped} steps skipped as not finite")
    return 0


def _distill(args: argparse.Namespace) -> int:
    try:
        from engines.distill import published
        from engines.distill.consistency import Distillation
        from engines.training.loop import Plan
    except ImportError as error:
        return _missing(error)
    order = published.Order(
        data=args.data,
        out=args.out,
        guidance=args.guidance,
        batch=args.batch,
        how=Distillation(skip=args.skip, ema=args.ema, huber=0.001),
        plan=Plan(name=f"{args.out.name}-{args.stage}", steps=args.steps, rate=args.rate, seed=args.seed),
        resume=args.resume,
    )
    distil = published.distil_prior if args.stage == "prior" else published.distil_unclip
    identity, fitted = distil(open_pack(args.pack), order)
    print(f"{args.out}: sealed as {identity}; {fitted.seconds:.0f} s, {fitted.skipped} steps skipped as not finite")
    return 0
