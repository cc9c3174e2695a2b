"""The `calibrate` command, mounted in the `rtdecode` command through an entry point."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``calibrate``, ``prior``, ``report`` and ``fit-encoder``; each sets ``handler``."""
    parser = subparsers.add_parser(
        "calibrate",
        help="fit a participant's decoder while the calibration runs come in, and hand it to the daemon",
    )
    parser.add_argument("settings", type=Path, metavar="SETTINGS", help="the TOML file that `rtdecode run` was given")
    parser.add_argument("--key", metavar="FILE", help="key of `rtdecode keys new`, where the daemon asks for keys")
    parser.set_defaults(handler=_calibrate)
    prior = subparsers.add_parser("prior", help="what earlier participants teach of a new one").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    learn = prior.add_parser("learn", help="learn a group prior from the bundles of earlier participants")
    learn.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="one of each participant")
    learn.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write")
    learn.set_defaults(handler=_learn_prior)
    report = subparsers.add_parser(
        "report", help="what a session did, with checks whether decoding is more than it seems"
    )
    report.add_argument(
        "session", type=Path, metavar="SESSION", help="session folder, with a calibration of its own, feedback or films"
    )
    report.add_argument("--stimuli", type=Path, help="folder of the pictures, where it has moved")
    report.add_argument(
        "--other", type=Path, metavar="SESSION", help="session of another participant, to decode as well"
    )
    report.add_argument(
        "--earlier",
        type=Path,
        nargs="+",
        default=[],
        metavar="SESSION",
        help="earlier sessions of this participant, the first one first, whose feedback is drawn beside",
    )
    report.add_argument("--out", type=Path, help="folder of the report; SESSION/report by default")
    report.set_defaults(handler=_report)
    fit = subparsers.add_parser(
        "fit-encoder",
        help="fit what predicts a participant's voxels of a picture, or their parcels of a film",
    )
    fit.add_argument("session", type=Path, metavar="SESSION", help="session folder")
    what = fit.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, help="folder of shown pictures, <stimulus>.png or .jpg")
    what.add_argument(
        "--film",
        action="append",
        metavar="NAME=FOLDER",
        help="a film that the session has shown, and its prediction of rtdecode encode; may be repeated",
    )
    fit.add_argument(
        "--pack",
        default="tiny",
        help="with --images: whose embedder describes pictures: an installed pack, or a folder",
    )
    fit.add_argument(
        "--region", action="append", default=[], metavar="NAME=MASK", help="with --images: a region to tell of apart"
    )
    fit.add_argument(
        "--bundle",
        type=Path,
        help="with --images: the session's bundle; OUT-bundle becomes a copy that carries the encoder",
    )
    fit.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    fit.set_defaults(handler=_fit_encoder)


def _report(args: argparse.Namespace) -> int:
    from calibration.report.checks import run_checks
    from calibration.report.films import shown_films
    from calibration.report.other_brain import other_betas
    from calibration.report.page import write
    from calibration.report.regulation import feedback_runs
    from calibration.session_trials import read_calibration

    session, checks = None, []
    alone = bool(feedback_runs(args.session) or shown_films(args.session))
    if (args.session / "bundle").is_dir() or args.other is not None or not alone:
        session = read_calibration(args.session, args.stimuli)
        other = None if args.other is None else other_betas(session.folder, args.other)
        checks = run_checks(session, other)
    print(write(args.session, session, checks, args.out or args.session / "report", args.earlier))
    return 0


def _learn_prior(args: argparse.Namespace) -> int:
    from calibration.learned_prior import learn_from_bundles

    identity = learn_from_bundles(args.bundles, args.out)
    print(f"{args.out}: group prior of {len(args.bundles)} participants, {identity[:12]}")
    return 0


def _fit_encoder(args: argparse.Namespace) -> int:
    return _fit_film(args) if args.images is None else _fit_pictures(args)


def _fit_film(args: argparse.Namespace) -> int:
    from calibration.film_readout_fit import fit_session
    from rtdecode.errors import SettingsError
    from rtdecode.packs.film_readout import write_readout

    films = dict(text.partition("=")[::2] for text in args.film)
    if not all(name and folder for name, folder in films.items()):
        raise SettingsError([f"--film: expected NAME=FOLDER, got {' '.join(args.film)}"])
    readout = fit_session(args.session, {name: Path(folder) for name, folder in films.items()})
    identity = write_readout(args.out, readout)
    print(
        f"{args.out}: {_held_out(readout.held_out, 'parcels')}, fitted to {readout.about.volumes} volumes of "
        f"{readout.about.runs} runs; sealed as {identity}"
    )
    return 0


def _fit_pictures(args: argparse.Namespace) -> int:
    from calibration.voxel_encoder_fit import carry_encoder, fit_session, write_voxel_encoder
    from rtdecode.packs import open_pack, open_participant
    from rtdecode.session.recording import session_identifier

    pack = open_pack(args.pack)
    bundle = None if args.bundle is None else open_participant(args.bundle)
    responses = fit_session(args.session, args.images, pack, args.region)
    encoder = responses.encoder
    about = {"pack": pack.identity, "pack_name": pack.name, "session": args.session.name}
    identity = write_voxel_encoder(args.out, encoder, about, responses)
    print(f"{args.out}: {_held_out(encoder.held_out, 'voxels')}; sealed as {identity}")
    if bundle is not None:
        session = session_identifier(args.session)
        target = args.out.with_name(args.out.name + "-bundle")
        print(f"{target}: the bundle with this encoder in it, {carry_encoder(bundle, args.out, session, target)}")
    return 0


def _held_out(found: NDArray[np.float32], what: str) -> str:
    """Say how well the best and the middle ones were predicted."""
    best = sorted(found.tolist(), reverse=True)
    tenth = best[: len(best) // 10 + 1]
    return (
        f"{len(best)} {what}, held-out correlation {sum(tenth) / len(tenth):.2f} in the best tenth, "
        f"{statistics.median(best):.2f} in the median"
    )


def _calibrate(args: argparse.Namespace) -> int:
    from calibration.session_trials import calibrator_for
    from calibration.visit_client import TOPICS, CalibrationRun
    from rtdecode.client import Client
    from rtdecode.packs import open_pack
    from rtdecode.session.recording import session_folder
    from rtdecode.settings import load_settings

    settings = load_settings(args.settings)
    pack = open_pack(settings.decode.pack)
    calibrator = calibrator_for(settings, pack)
    with Client(*settings.publish.nearby(), topics=TOPICS, key=args.key) as client:
        folder = session_folder(settings.session)
        calibration = CalibrationRun(
            client,
            calibrator,
            pack,
            folder,
            settings.calibration,
            report=lambda line: print(line, flush=True),
        )
        bundle = calibration.run()
    print(f"{bundle}: calibrated on {calibration.calibrator.trials} trials")
    return 0
