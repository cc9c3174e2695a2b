"""`rtdecode evaluate`: how well a session was decoded, in the papers' measures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the command; it sets ``handler``."""
    from rtdecode.evaluate.judges import default_weights

    parser = subparsers.add_parser("evaluate", help="compare what a session decoded with what was shown")
    parser.add_argument("session", type=Path, metavar="SESSION", help="session folder")
    parser.add_argument("--images", type=Path, required=True, help="folder of shown pictures, <stimulus>.png or .jpg")
    parser.add_argument("--captions", type=Path, help="JSON of stimulus to its caption, or a list of them")
    parser.add_argument("--pack", help="pack whose embedder judges too; the session's by default")
    parser.add_argument("--weights", type=Path, default=default_weights(), help="folder of published networks' weights")
    parser.add_argument(
        "--encoder", type=Path, help="folder of rtdecode fit-encoder: brain correlation of the pictures"
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=MASK",
        help="with --encoder: also over the voxels of a NIfTI mask on the session's grid; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="folder of the report; SESSION/evaluation by default")
    parser.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from rtdecode.evaluate.brain_judge import open_judge
    from rtdecode.evaluate.evaluation import evaluate, read_references
    from rtdecode.evaluate.recorded_session import read_pairs
    from rtdecode.evaluate.results_page import write

    pairs = read_pairs(args.session, args.images)
    references = None if args.captions is None else read_references(args.captions)
    judge = None if args.encoder is None else open_judge(args.encoder, args.session, args.region)
    figures, missing = evaluate(
        pairs, pack=_pack(args.session, args.pack), weights=args.weights, references=references, judge=judge
    )
    page = write(pairs, figures, missing, args.out or args.session / "evaluation", f"Evaluation of {args.session.name}")
    table = Table("measure", "mean", "95 % interval", "chance", "trials", title=str(args.session))
    for one in figures:
        interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        better = " (lower is better)" if one.lower_is_better else ""
        chance = "" if one.chance is None else f"{one.chance:.3f}"
        table.add_row(f"{one.name}{better}", f"{one.value:.3f}", interval, chance, str(one.n))
    Console().print(table)
    for absent in missing:
        print(f"not taken: {absent.name}: {absent.reason}")
    if pairs.left_out:
        print(f"{len(pairs.left_out)} trials left out, for example {pairs.left_out[0]}")
    print(page)
    return 0


def _pack(session: Path, wanted: str | None) -> Any:
    """Open the pack that judges: the one wanted, or the session's if it is on this machine."""
    import tomllib

    from rtdecode.errors import BundleError
    from rtdecode.packs import open_pack

    if wanted is not None:
        return open_pack(wanted)
    settings = session / "settings.toml"
    content = tomllib.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    try:
        return open_pack(str(content.get("decode", {}).get("pack", "tiny")))
    except BundleError:
        return None
