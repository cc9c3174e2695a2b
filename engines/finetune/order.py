"""Fine-tune a pack on the calibration of a finished visit, and seal the bundle (torch). Import it inside functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calibration import cross_fitting
from calibration.cross_fitting import Crossed
from calibration.session_trials import RecordedCalibration, read_calibration
from engines.finetune.judging import network_figures
from engines.finetune.mindeye1_tunable import MindEye1Tunable
from engines.finetune.mindeye2_tunable import MindEye2Tunable
from engines.finetune.tiny_tunable import TinyTunable
from engines.finetune.training import Judged, Tuning, choose, steps_within, train
from engines.finetune.tunable import Tunable
from engines.training.carried_network import carry, reseal
from rtdecode.decode.families.stimulus_folder import EMBEDDINGS
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import TrainingError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.packs.participant_bundle import NETWORK, NetworkFigures, ParticipantBundle
from rtdecode.packs.sealed import check_target

Ints = NDArray[np.int64]

RANKS = range(4, 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneOrder:
    """What is to be done.

    Attributes
    ----------
    session : Path
        Folder of the finished visit.
    stimuli : Path or None
        Pictures of the visit, where they have moved.
    out : Path
        Folder of the new bundle.
    rank : int or None
        4 to 16; None: every weight is trained.
    tuning : Tuning
    """

    session: Path
    stimuli: Path | None
    out: Path
    rank: int | None
    tuning: Tuning


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FineTuned:
    """What came of it.

    Attributes
    ----------
    judged : list of Judged
        One for each set of trials that was set apart in turn.
    figures : NetworkFigures
    """

    judged: list[Judged]
    figures: NetworkFigures


def fine_tune(pack: EnginePack, order: FineTuneOrder, tell: Callable[[str], None]) -> tuple[str, NetworkFigures]:
    """Fine-tune, and seal a copy of the visit's bundle, with the network where it is better than the ridge alone.

    Returns
    -------
    str
        Identity of the new bundle.
    NetworkFigures

    Raises
    ------
    TrainingError
        The visit was calibrated with another pack, its trials are too few, or the time is too short.
    CalibrationError, SettingsError, BundleError, EngineError
        The visit, its pictures or the pack cannot be read, or the new bundle cannot be put where it is wanted.
    """
    if order.rank is not None and order.rank not in RANKS:
        raise TrainingError(f"rank: expected {RANKS.start} to {RANKS.stop - 1}, got {order.rank}")
    check_target(order.out)
    visit = read_calibration(order.session, order.stimuli)
    if visit.pack.identity != pack.identity:
        raise TrainingError(
            f"{order.session}: expected a visit that was calibrated with pack {pack.name} ({pack.identity[:12]}), got "
            f"one with {visit.pack.name} ({visit.pack.identity[:12]})"
        )
    tell("decoding each trial without its fold")
    trials = visit.calibrator.taken()
    tunable = make_tunable(pack, visit.bundle, visit.candidates, trials.shown, order.rank)
    tokens = target_tokens(pack, visit)
    whole = cross_fitting.whole(trials, visit.candidates)
    done = fine_tune_on(
        tunable,
        whole,
        cross_fitting.set_apart(trials, visit.candidates),
        trials.shown,
        torch.from_numpy(tokens).to(tunable.device),
        order.tuning,
        rank=order.rank,
        tell=tell,
    )
    order.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=order.out.parent, prefix=f".{order.out.name}-") as scratch:
        network = None
        if done.figures.steps:
            network = Path(scratch) / NETWORK
            tunable.write_network(network, f"{pack.name}-{visit.bundle.provenance.participant}")
            if isinstance(tunable, MindEye1Tunable):
                return carry(visit.bundle, open_pack(str(network)), order.out, figures=done.figures), done.figures
        return reseal(visit.bundle, network, order.out, figures=done.figures), done.figures


def make_tunable(
    pack: EnginePack, bundle: ParticipantBundle, candidates: Candidates, shown: Ints, rank: int | None
) -> Tunable:
    """Load what can be fine-tuned of a pack.

    Raises
    ------
    TrainingError
        The pack is of a family that cannot.
    """
    kind = pack.description.kind
    if kind == "tiny":
        pictures = candidates.tokens[np.unique(shown)]
        return TinyTunable(pack, adapter_from(bundle.adapter).token_mean, float(pictures.std(0).mean()), rank)
    if kind == "mindeye2":
        return MindEye2Tunable(pack, rank)
    if kind == "mindeye1":
        return MindEye1Tunable(pack, adapter_from(bundle.adapter), bundle.provenance.mask_voxels, rank)
    raise TrainingError(f"pack {pack.name}: expected one of kind tiny, mindeye1 or mindeye2 to fine-tune, got {kind}")


def target_tokens(pack: EnginePack, visit: RecordedCalibration) -> NDArray[np.float32]:
    """Tokens (p, t, d) of the candidates' pictures that a network is to give.

    Those of a MindEye2 pack are what ``rtdecode engines embed`` has written beside the pictures: its candidates are
    hidden values.

    Raises
    ------
    TrainingError
        The file lacks them.
    """
    if pack.description.kind != "mindeye2":
        return visit.candidates.tokens
    assert visit.stimuli is not None  # else its candidates could not have been read
    path = visit.stimuli / EMBEDDINGS
    wanted = len(visit.candidates.names), pack.description.tokens.count, pack.description.tokens.channels
    try:
        with safe_open(path, framework="np") as file:
            tokens = file.get_tensor("tokens")
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: expected tokens of the pictures ({error}): rtdecode engines embed") from None
    if tokens.shape != wanted:
        raise TrainingError(f"{path}: tokens: expected shape {wanted}, got {tokens.shape}: rtdecode engines embed")
    return np.asarray(tokens, np.float32)


def fine_tune_on(
    tunable: Tunable,
    whole: Crossed,
    apart: Sequence[Crossed],
    shown: Ints,
    tokens: Tensor,
    tuning: Tuning,
    *,
    rank: int | None,
    tell: Callable[[str], None] = lambda _: None,
) -> FineTuned:
    """Train once for each set of trials that is set apart, choose the step by these, and train on all up to it.

    Parameters
    ----------
    tunable : Tunable
        Holds the result: the closed-form decoder, where no step was surely better.
    whole : Crossed
        All trials.
    apart : sequence of Crossed
        Each trial is set apart in one of them.
    shown : ndarray of shape (n,), int64
        Picture of each trial, a row of `tokens`.
    tokens : Tensor of shape (p, t, d)
    tuning : Tuning
    rank : int or None
        For the figures.
    tell : callable
        Is given a line before each training.
    """
    steps = steps_within(tunable, whole, shown, tokens, tuning, len(apart) + 1)
    judged = []
    for number, crossed in enumerate(apart, start=1):
        tell(f"training {number} of {len(apart) + 1}, {steps} steps, judged by {len(crossed.apart)} trials set apart")
        judged.append(train(tunable, crossed, shown, tokens, tuning, number=number, last=steps))
    kept = choose(judged)
    if kept.step:
        tell(f"training {len(apart) + 1} of {len(apart) + 1}, {kept.step * tuning.every} steps on all trials")
    train(tunable, whole, shown, tokens, tuning, number=0, last=kept.step * tuning.every)
    tunable.eval()
    return FineTuned(judged=judged, figures=network_figures(judged, tuning, kept, rank))
