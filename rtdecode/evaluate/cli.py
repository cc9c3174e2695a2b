"""`rtdecode evaluate`: how well a session was decoded, in the papers' measures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdecode.evaluate.evaluation import Figure, Unavailable


def register(subparsers: Any) -> None:
    """Add the command; it sets ``handler``."""
    from rtdecode.evaluate.judges import default_weights

    parser = subparsers.add_parser("evaluate", help="compare what a session decoded with what was shown")
    parser.add_argument("session", type=Path, nargs="?", metavar="SESSION", help="session folder")
    parser.add_argument(
        "--betas",
        type=Path,
        metavar="FILE",
        help="instead of a session: recorded betas, which the networks of --pack decode (betas, and in the metadata "
        "stimuli and tasks)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="with --betas: pictures drawn of each stimulus")
    parser.add_argument(
        "--legacy", action="store_true", help="two-way also as the notebook of NSD-Imagery counts it: 1 / (n - 1) low"
    )
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
    parser.add_argument(
        "--out", type=Path, help="folder of the report; SESSION/evaluation by default, with --betas FILE/../evaluation"
    )
    parser.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from rtdecode.errors import SettingsError
    from rtdecode.evaluate.brain_judge import open_judge
    from rtdecode.evaluate.evaluation import evaluate, read_references
    from rtdecode.evaluate.recorded_session import read_pairs
    from rtdecode.evaluate.results_page import write

    if (args.session is None) == (args.betas is None):
        raise SettingsError(["expected either a session folder or --betas FILE"])
    references = None if args.captions is None else read_references(args.captions)
    if args.betas is not None:
        return _evaluate_betas(args, references)
    pairs = read_pairs(args.session, args.images)
    judge = None if args.encoder is None else open_judge(args.encoder, args.session, args.region)
    figures, missing = evaluate(
        pairs,
        pack=_pack(args.session, args.pack),
        weights=args.weights,
        references=references,
        judge=judge,
        legacy=args.legacy,
    )
    page = write(pairs, figures, missing, args.out or args.session / "evaluation", f"Evaluation of {args.session.name}")
    _tell(str(args.session), figures, missing, pairs.left_out)
    print(page)
    return 0


def _evaluate_betas(args: argparse.Namespace, references: Mapping[str, Sequence[str]] | None) -> int:
    """Decode recorded betas, task by task, and judge what was drawn."""
    from rtdecode.decode.families.family import record_decoder
    from rtdecode.errors import SettingsError
    from rtdecode.evaluate.evaluation import evaluate
    from rtdecode.evaluate.recorded_betas import decoded_pairs, read_recorded
    from rtdecode.evaluate.results_page import write
    from rtdecode.packs import open_pack

    problems = ["--betas goes with --pack, whose networks decode them"] if args.pack is None else []
    problems += ["--encoder judges sessions"] if args.encoder is not None else []
    problems += [f"--repeats: expected at least 1, got {args.repeats}"] if args.repeats < 1 else []
    if problems:
        raise SettingsError(problems)
    pack = open_pack(args.pack)
    recorded = read_recorded(args.betas, args.images)
    decode = record_decoder(pack)
    for one in recorded:
        pairs = list(decoded_pairs(one, decode, repeats=args.repeats))
        figures, missing = evaluate(*pairs, pack=pack, weights=args.weights, references=references, legacy=args.legacy)
        title = f"{args.betas.stem}{f', {one.task}' if one.task else ''}, {args.repeats} times by {pack.name}"
        out = args.out or args.betas.parent / "evaluation"
        page = write(pairs[0], figures, missing, out / one.task, f"Evaluation of {title}")
        _tell(title, figures, missing, one.left_out)
        print(page)
    return 0


def _tell(title: str, figures: Sequence[Figure], missing: Sequence[Unavailable], left_out: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "mean", "95 % interval", "chance", "trials", title=title)
    for one in figures:
        interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        better = " (lower is better)" if one.lower_is_better else ""
        chance = "" if one.chance is None else f"{one.chance:.3f}"
        table.add_row(f"{one.name}{better}", f"{one.value:.3f}", interval, chance, str(one.n))
    Console().print(table)
    for absent in missing:
        print(f"not taken: {absent.name}: {absent.reason}")
    if left_out:
        print(f"{len(left_out)} trials left out, for example {left_out[0]}")


def _pack(session: Path, wanted: str | None) -> Any:
    """Open the pack that judges: the one wanted, or the session's if it is on this machine."""
    import tomllib

    from rtdecode.errors import BundleError
    from rtdecode.packs import open_pack
    from rtdecode.sections import name_or_folder
    from rtdecode.session.recording import settings_folder

    if wanted is not None:
        return open_pack(wanted)
    settings = session / "settings.toml"
    content = tomllib.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    try:
        told = str(content.get("decode", {}).get("pack", "tiny"))
        return open_pack(name_or_folder(told, settings_folder(session, content)))
    except BundleError:
        return None
