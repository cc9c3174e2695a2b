"""`engines distill` and `engines compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.participant_option import add_participants
from engines.training.cli import missing, told
from rtdecode.packs.sealed import check_target

_PICTURES = {
    "prior": "safetensors file with tokens of pictures",
    "unclip": "safetensors file of engines embed --unclip-latents: tokens and latent of pictures",
    "stage-c": "safetensors file of engines embed --unclip-latents: tokens and latent of pictures",
}
_GUIDANCE = {"prior": 1.0, "unclip": 5.0, "stage-c": 4.0}
_SKIP = {"prior": 5, "unclip": 20, "stage-c": 5}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; they and the stages of ``distill`` set ``handler``."""
    distill = commands.add_parser(
        "distill", help="distil a pack's prior, unCLIP or stage C into a student of few steps"
    )
    stages = distill.add_subparsers(required=True, metavar="STAGE")
    for stage in _PICTURES:
        parser = stages.add_parser(stage, help=f"the {stage}, by consistency distillation")
        parser.add_argument("pack", help="an imported or trained pack: its name or folder")
        parser.add_argument("--pictures", type=Path, required=True, help=_PICTURES[stage])
        add_participants(parser, required=stage == "prior")
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
        parser.add_argument(
            "--lose",
            type=float,
            default=2.0,
            metavar="POINTS",
            help="of two-way identification on held-out pictures that the student may lose; else it is not sealed",
        )
        parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
        parser.set_defaults(handler=_distill, stage=stage)

    comparing = commands.add_parser("compare", help="a teacher's pack beside its student's, on what a visit decoded")
    comparing.add_argument("teacher", help="pack: its name or folder")
    comparing.add_argument("student", help="pack that was made of it; one of both is the visit's")
    comparing.add_argument("--session", type=Path, required=True, help="session folder of a visit with a calibration")
    comparing.add_argument("--stimuli", type=Path, help="its pictures, where they have moved")
    comparing.add_argument("--seed", type=int, default=0, help="of the noise that both draw from")
    comparing.set_defaults(handler=_compare)


def _distill(args: argparse.Namespace) -> int:
    try:
        from engines.distill import imported_packs, stage_c
        from engines.distill.consistency import Distillation
        from engines.distill.order import DistillOrder
        from engines.training.loop import Plan
    except ImportError as error:
        return missing(error)
    check_target(args.out)
    order = DistillOrder(
        pictures=args.pictures,
        participants=args.participant,
        out=args.out,
        guidance=args.guidance,
        batch=args.batch,
        how=Distillation(skip=args.skip, ema=args.ema, huber=0.001),
        plan=Plan(name=f"{args.out.name}-{args.stage}", steps=args.steps, rate=args.rate, seed=args.seed),
        resume=args.resume,
        lose=args.lose,
    )
    distil = {
        "prior": imported_packs.distil_prior,
        "unclip": imported_packs.distil_unclip,
        "stage-c": stage_c.distil_stage_c,
    }
    return told(args.out, *distil[args.stage](args.pack, order))


def _compare(args: argparse.Namespace) -> int:
    try:
        from engines.distill.compared_packs import compare_packs
        from engines.distill.judging import told as worded
    except ImportError as error:
        return missing(error)
    judged = compare_packs(args.teacher, args.student, args.session, args.stimuli, seed=args.seed, tell=print)
    print(worded(judged))
    return 0
