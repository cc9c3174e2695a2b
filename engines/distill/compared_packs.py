"""Two packs side by side on what a finished visit decoded after its calibration (torch). Import it inside functions.

Both are given the same betas, the participant's bundle and the category that the score chose, and start from the same
noise; what each draws is judged by one embedder. So a teacher is compared with its student, or a pack with another
precision or number of steps of it, by what a participant would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.session_trials import RecordedCalibration, read_calibration
from engines.distill.judging import judge
from rtdecode.decode.families.distilled_table import JudgedStudent
from rtdecode.decode.families.family import family_of
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.pipeline import Pipeline, TakesNetwork
from rtdecode.decode.resample import bilinear
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.encoding import encoding_from
from rtdecode.errors import EngineError, TrainingError
from rtdecode.evaluate.evaluation import embedded
from rtdecode.evaluate.recorded_session import PX, load_pictures
from rtdecode.packs import EnginePack, open_pack
from rtdecode.settings import DecodeSettings
from rtdecode.stimuli import pictures_in

Float32 = NDArray[np.float32]

FEWEST = 4
"""Pictures that were shown after the calibration."""
_SAME_TOKENS = 0.05
"""Root mean square difference of candidates' tokens, as a share of theirs, up to which two packs read the same."""


def compare_packs(
    teacher: str, student: str, session: Path, stimuli: Path | None, *, seed: int, tell: Callable[[str], None]
) -> JudgedStudent:
    """Let two packs draw what a visit decoded, and compare both with the pictures that were shown.

    Parameters
    ----------
    teacher, student : str
        Names or folders of packs; one of them is the visit's.
    session : Path
        Session folder of a visit with a calibration of its own.
    stimuli : Path or None
        Its pictures, where they have moved.
    seed : int
        Of the noise that both start from.
    tell : callable
        Is given a line before what takes long.

    Returns
    -------
    JudgedStudent
        Of the first trial of each picture: repeats of one are not independent.

    Raises
    ------
    TrainingError
        The packs do not read the visit alike, one draws no pictures, or fewer than `FEWEST` were shown.
    CalibrationError, SettingsError, BundleError, EngineError
        The visit, its pictures or a pack cannot be read.
    """
    packs = [open_pack(name) for name in (teacher, student)]
    visit = read_calibration(session, stimuli)
    for pack in packs:
        _hold_to(visit, pack)
    if visit.stimuli is None:
        raise TrainingError(f"{session}: expected a visit whose pictures are in a folder, got one without: --stimuli")
    shown: dict[str, Float32] = {}
    for name, beta in visit.decoded:
        shown.setdefault(name, beta)
    if len(shown) < FEWEST:
        raise TrainingError(
            f"{session}: expected at least {FEWEST} pictures shown after the calibration, got {len(shown)}"
        )
    paths = pictures_in(visit.stimuli)
    truth = embedded(packs[0], load_pictures([paths[name] for name in shown], PX))
    made = []
    for pack in packs:
        tell(f"{pack.name}: drawing {len(shown)} pictures")
        made.append(embedded(packs[0], _drawn(visit, pack, shown, seed)))
    by_teacher, by_student, wanted = (torch.from_numpy(tokens) for tokens in (*made, truth))
    return judge(by_teacher, by_student, wanted, decoded=True, seed=seed)


def _hold_to(visit: RecordedCalibration, pack: EnginePack) -> None:
    """Refuse a pack whose networks would take the visit's ridge for another's.

    Raises
    ------
    TrainingError
        It would have been calibrated to other values of the same pictures.
    """
    if pack.identity == visit.pack.identity:
        return
    wanted, tokens = visit.candidates.tokens, load_candidates(pack, visit.stimuli).tokens
    if wanted.shape != tokens.shape or np.square(wanted - tokens).mean() > _SAME_TOKENS**2 * np.square(wanted).mean():
        raise TrainingError(
            f"pack {pack.name}: expected one that reads a brain as pack {visit.pack.name} of the visit does, got other "
            f"values of its pictures: compare packs of which one was made from the other"
        )


def _drawn(visit: RecordedCalibration, pack: EnginePack, shown: dict[str, Float32], seed: int) -> Float32:
    """Pictures (n, 3, PX, PX) in 0..1 that a pack draws of betas."""
    settings = DecodeSettings()
    pipeline: Pipeline = family_of(pack).pipeline(pack, settings, choose(settings.backend, pack), seed=seed)
    adapter, encoding = adapter_from(visit.bundle.adapter), encoding_from(visit.bundle.encoding)
    if isinstance(pipeline, TakesNetwork):
        network = visit.bundle.network
        pipeline.take_network(None if network is None else open_pack(str(network)), adapter)
    pipeline.take(adapter)
    pictures = []
    for name, beta in shown.items():
        category = visit.candidates.categories[int(np.argmax(encoding.categories_of(encoding.read(beta))))]
        picture = pipeline.picture(pipeline.settle(pipeline.embed(adapter.chosen(beta)), category, name), name)
        if picture is None:
            raise EngineError(f"pack {pack.name}: expected one that draws pictures, got none of them")
        pictures.append(bilinear(picture.transpose(2, 0, 1).astype(np.float32) / 255, PX))
    return np.stack(pictures)
