"""`rtdecode encode`, and `rtdecode engines features`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress

from rtdecode.packs import open_pack
from rtdecode.packs.film_prediction import write_prediction
from rtdecode.packs.film_readout import open_readout
from rtdecode.packs.sealed import check_target, read_tensors


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``encode``; it sets ``handler``."""
    encode = subparsers.add_parser("encode", help="predict what a brain does that follows a film")
    encode.add_argument("film", type=Path, metavar="FILM", help="folder of features, or the film beside it")
    encode.add_argument("--model", required=True, help="a pack of rtdecode engines import mirage-encoding")
    encode.add_argument(
        "--subject",
        default="mean",
        help="whose head predicts, or a folder of rtdecode fit-encoder --film; the mean of all heads by default",
    )
    encode.add_argument("--parcels", type=Path, help="table of the atlas: index, name and, if need be, network")
    encode.add_argument("--scores", type=Path, help="safetensors with `scores` (members, parcels) of an ensemble")
    encode.add_argument("--no-ablation", action="store_true", help="do not leave out each modality in turn")
    encode.add_argument("--device", default="cpu", help="as torch names it, for example cuda")
    encode.add_argument("--out", type=Path, required=True, help="folder of the prediction")
    encode.set_defaults(handler=_encode)


def register_features(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``features`` to ``rtdecode engines``; it sets ``handler``."""
    features = commands.add_parser("features", help="extract a film's features for an encoding model, before the visit")
    features.add_argument("film", type=Path, metavar="FILM", help="any film that FFmpeg reads")
    features.add_argument("--transcript", type=Path, help="words as .tsv (onset, duration, word) or .srt")
    features.add_argument(
        "--backbone", default="Qwen/Qwen3-Omni-30B-A3B-Thinking", help="folder, or name on the Hugging Face hub"
    )
    features.add_argument("--device", default="auto", help="as Accelerate places a model: auto, cuda, cpu")
    features.add_argument("--out", type=Path, help="folder of the features; FILM.features by default")
    features.set_defaults(handler=_features)


def _features(args: argparse.Namespace) -> int:
    try:
        from accelerate import PartialState

        from engines.film.extraction import Extraction, assemble, digest, extract
        from engines.film.features import SUFFIX
        from engines.film.media import FilmFile
        from engines.film.states import load_qwen
        from engines.film.transcript import read_transcript

        state = PartialState()
        media = FilmFile(args.film)
        words = [] if args.transcript is None else read_transcript(args.transcript)
        sources = {"film": digest(args.film)}
        if args.transcript is not None:
            sources["transcript"] = digest(args.transcript)
        alone = state.num_processes == 1
        backbone = load_qwen(args.backbone, args.device if alone else str(state.device))
    except ImportError as error:
        print(f"features need torch, accelerate and a transformers with Qwen3-Omni ({error}): pip install '.[film]'")
        return 2
    order = Extraction(film=args.film.name, words=words, has_transcript=args.transcript is not None, sources=sources)
    out = args.out or args.film.with_name(args.film.name + SUFFIX)
    share = {"process": state.process_index, "processes": state.num_processes}
    with Progress(disable=not state.is_main_process) as bar:
        task = bar.add_task("moments", total=None)
        extract(
            order,
            media,
            backbone,
            out,
            **share,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{out}: sealed as {assemble(order, media, backbone, out, processes=state.num_processes)}")
    return 0


def _encode(args: argparse.Namespace) -> int:
    try:
        from engines.film.encoding import FilmOrder, encode_film
        from engines.film.features import open_features
    except ImportError as error:
        print(f"a film's encoder needs torch ({error}): pip install '.[gpu]'")
        return 2
    from engines.film.parcel_names import read_parcel_names

    fitted = open_readout(Path(args.subject)) if Path(args.subject).is_dir() else None
    labels, networks = ([], []) if args.parcels is None else read_parcel_names(args.parcels)
    order = FilmOrder(
        subject=args.subject,
        readout=fitted,
        parcels=labels,
        networks=networks,
        scores=None if args.scores is None else read_tensors(args.scores)["scores"],
        ablate=not args.no_ablation,
        device=args.device,
    )
    check_target(args.out)
    features = open_features(args.film)
    for name, reason in features.about.absent.items():
        print(f"without {name}: {reason}")
    with Progress() as bar:
        task = bar.add_task("encoding", total=None)
        encoded = encode_film(
            open_pack(args.model),
            features,
            order,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    identity = write_prediction(args.out, encoded.prediction, encoded.trunk)
    volumes, parcels = encoded.prediction.predicted.shape
    print(f"{args.out}: {volumes} volumes of {parcels} parcels; sealed as {identity}")
    return 0
