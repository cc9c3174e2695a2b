"""The `calibrate` command, mounted in the `rtdecode` command through an entry point."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``calibrate`` and ``fit-encoder``; each sets ``handler``."""
    parser = subparsers.add_parser(
        "calibrate",
        help="fit a participant's decoder while the calibration runs come in, and hand it to the daemon",
    )
    parser.add_argument("settings", type=Path, metavar="SETTINGS", help="the TOML file that `rtdecode run` was given")
    parser.set_defaults(handler=_calibrate)

    fit = subparsers.add_parser(
        "fit-encoder",
        help="fit what predicts a participant's voxels of a picture, to judge and to choose pictures by",
    )
    fit.add_argument("session", type=Path, metavar="SESSION", help="session folder")
    fit.add_argument("--images", type=Path, required=True, help="folder of shown pictures, <stimulus>.png or .jpg")
    fit.add_argument("--pack", default="tiny", help="whose embedder describes pictures: an installed pack, or a folder")
    fit.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    fit.set_defaults(handler=_fit_encoder)


def _fit_encoder(args: argparse.Namespace) -> int:
    import numpy as np

    from calibration.voxel_encoder_fit import fit_session, write_voxel_encoder
    from rtdecode.packs import open_pack

    pack = open_pack(args.pack)
    encoder = fit_session(args.session, args.images, pack)
    about = {"pack": pack.identity, "pack_name": pack.name, "session": args.session.name}
    identity = write_voxel_encoder(args.out, encoder, about)
    best = np.sort(encoder.held_out)[::-1]
    print(
        f"{args.out}: {len(best)} voxels, held-out correlation {best[: len(best) // 10 + 1].mean():.2f} in the best "
        f"tenth, {np.median(best):.2f} in the median; sealed as {identity}"
    )
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from calibration.calibrator import Calibrator
    from calibration.visit_client import TOPICS, CalibrationRun
    from rtdecode.client import Client
    from rtdecode.decode.loading import load_candidates
    from rtdecode.packs import open_pack
    from rtdecode.session.recording import session_folder
    from rtdecode.settings import load_settings

    settings = load_settings(args.settings)
    pack = open_pack(settings.decode.pack)
    calibrator = Calibrator(
        load_candidates(pack, settings.decode.stimuli, threads=settings.decode.threads),
        leave_out=settings.calibration.leave_out,
        seed=settings.session.seed,
    )
    with Client(settings.publish.stream, settings.publish.requests, topics=TOPICS) as client:
        folder = session_folder(settings.session)
        calibration = CalibrationRun(
            client,
            calibrator,
            pack,
            folder,
            null_stimuli=settings.calibration.null_stimuli,
            report=lambda line: print(line, flush=True),
        )
        bundle = calibration.run()
    print(f"{bundle}: calibrated on {calibration.calibrator.trials} trials")
    return 0
