"""The trials of a session from its journal, and its calibration as it was."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrator import Calibrator
from calibration.common_space import common_places
from calibration.earlier_visit import EarlierVisit, only
from calibration.learned_prior import LearnedPrior, load_prior
from rtdecode import client as wire
from rtdecode import derivatives
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError, SettingsError
from rtdecode.estimate.calibrated import MASK, REFERENCE
from rtdecode.estimate.reestimate import open_betas
from rtdecode.packs import EnginePack, ParticipantBundle, open_pack, open_participant
from rtdecode.process.kept_runs import calibration_runs
from rtdecode.sections import name_or_folder
from rtdecode.session.entries import bad_runs, read_outputs
from rtdecode.session.recording import settings_folder
from rtdecode.settings import CalibrationSettings, Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionTrial:
    """A trial that has a final beta."""

    trial: str
    run: int
    names: tuple[str | None, str | None]
    beta: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedCalibration:
    """What a session folder tells of its calibration, and of what was decoded after it.

    Attributes
    ----------
    folder : Path
    bundle : ParticipantBundle
    pack : EnginePack
    stimuli : Path or None
        Folder of the pictures; None: the pack's categories.
    candidates : Candidates
    calibrator : Calibrator
        With the trials of the calibration, as the bundle was fitted to them.
    nulls : ndarray of shape (m, v), float32
        Trials of the calibration that showed no content.
    rest : ndarray of shape (r, v), float32
    decoded : tuple of (str, ndarray)
        Stimulus, and final beta (v,), of each later trial of a known stimulus.
    """

    folder: Path
    bundle: ParticipantBundle
    pack: EnginePack
    stimuli: Path | None
    candidates: Candidates
    calibrator: Calibrator
    nulls: NDArray[np.float32]
    rest: NDArray[np.float32]
    decoded: tuple[tuple[str, NDArray[np.float32]], ...]


def read_calibration(folder: Path, stimuli: Path | None) -> RecordedCalibration:
    """Read a session that was calibrated.

    Parameters
    ----------
    folder : Path
        Session folder.
    stimuli : Path or None
        Folder of pictures; None: as the settings of the session say.

    Raises
    ------
    SettingsError
        No session folder, or its pictures are not found.
    CalibrationError
        It has no calibration of its own.
    """
    if not (folder / "settings.toml").is_file():
        raise SettingsError([f"{folder}: expected a session folder with settings.toml, found none"])
    raw = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
    if not (folder / "bundle").is_dir():
        raise CalibrationError(f"{folder}: expected a calibration of its own (bundle), found none")
    decode, section = raw.get("decode", {}), raw.get("calibration", {})
    root = settings_folder(folder, raw)
    bundle = open_participant(folder / "bundle")
    pack = open_pack(name_or_folder(str(decode.get("pack", "tiny")), root))
    if bundle.provenance.pack != pack.identity:
        raise CalibrationError(
            f"{folder}: expected pack {bundle.provenance.pack_name} ({bundle.provenance.pack[:12]}) as in its "
            f"calibration, got {pack.name} ({pack.identity[:12]})"
        )
    pictures = _stimuli(root, decode.get("stimuli"), stimuli)
    candidates = load_candidates(pack, pictures)
    learned = open_betas(_one(folder, derivatives.CALIBRATION_BETAS))
    runs, nulls = calibration_runs(folder), set(section.get("null_stimuli", CalibrationSettings().null_stimuli))
    calibrator = Calibrator(
        candidates,
        leave_out=bundle.provenance.leave_out,
        seed=bundle.provenance.seed,
        prior=_prior(root, section.get("group_prior"), bundle, pack),
    )
    if calibrator.wants_places:
        calibrator.lies_at(common_places(bundle.folder / REFERENCE, bundle.folder / MASK))
    decoded, without = [], []
    for trial in session_trials(folder):
        name = calibrator.known(trial.names)
        if trial.run > runs:
            decoded += [] if name is None else [(name, trial.beta)]
        elif not nulls.isdisjoint(trial.names):
            calibrator.add_null(trial.beta, trial=trial.trial, run=trial.run)
            without.append(learned.trials.get(trial.trial, trial.beta))
        elif name is not None:
            calibrator.add(trial.beta, trial=trial.trial, stimulus=name, run=trial.run)
    calibrator.take_again(learned)
    empty = np.zeros((0, learned.rest.shape[1]), np.float32)
    return RecordedCalibration(
        folder=folder,
        bundle=bundle,
        pack=pack,
        stimuli=pictures,
        candidates=candidates,
        calibrator=calibrator,
        nulls=np.stack(without) if without else empty,
        rest=learned.rest,
        decoded=tuple(decoded),
    )


def calibrator_for(settings: Settings, pack: EnginePack) -> Calibrator:
    """Return the calibrator that the settings of a session ask for, without trials.

    Raises
    ------
    SettingsError, CalibrationError, BundleError
        What they name is not there, or does not fit.
    """
    prior, earlier = settings.calibration.group_prior, settings.calibration.earlier_session
    return Calibrator(
        load_candidates(pack, settings.decode.stimuli, threads=settings.decode.threads),
        leave_out=settings.calibration.leave_out,
        seed=settings.session.seed,
        prior=None if prior is None else load_prior(prior, pack),
        earlier=None if earlier is None else open_earlier(earlier, settings.session.participant),
    )


def open_earlier(folder: Path, participant: str) -> EarlierVisit:
    """Read the calibration of an earlier session, to learn from its trials again.

    Raises
    ------
    SettingsError
        No session folder, or its pictures are not found.
    CalibrationError
        It has no calibration of its own, or it is of another participant.
    """
    recorded = read_calibration(folder, None)
    about = recorded.bundle.provenance
    if about.participant != participant:
        raise CalibrationError(
            f"{folder}: expected an earlier session of participant {participant}, got one of {about.participant}"
        )
    trials = recorded.calibrator.taken()
    candidates, places = only(recorded.candidates, trials.shown)
    return EarlierVisit(
        session=about.session,
        mask=recorded.bundle.folder / MASK,
        candidates=candidates,
        trials=replace(trials, shown=places),
    )


def session_trials(folder: Path) -> list[SessionTrial]:
    """Read the final betas of a session from the journal of what was published; bad runs are left out."""
    found = []
    bad = bad_runs(folder)
    for _, entry in read_outputs(folder / "journal" / "outputs.journal"):
        if entry.topic != "beta":
            continue
        message: Any = wire.unpack(entry.topic.encode(), entry.payload)
        if message.final and message.invalid is None and message.beta is not None and message.run not in bad:
            packed = message.beta
            found.append(
                SessionTrial(
                    trial=message.trial or "",
                    run=message.run or 0,
                    names=(message.stimulus, message.condition),
                    beta=np.frombuffer(packed.data, packed.dtype).astype(np.float32),
                )
            )
    return found


def _prior(root: Path, named: str | None, bundle: ParticipantBundle, pack: EnginePack) -> LearnedPrior | None:
    """Load the group prior that a bundle was calibrated with: a later one may hold this very participant."""
    if named is None:
        return None
    prior = load_prior(root / named, pack)
    if prior.identity != bundle.provenance.group_prior:
        raise CalibrationError(
            f"{root / named}: expected the group prior {bundle.provenance.group_prior[:12]} that {bundle.folder} was "
            f"calibrated with, got {prior.identity[:12]}; put that file back"
        )
    return prior


def _stimuli(root: Path, told: str | None, given: Path | None) -> Path | None:
    if given is not None or told is None:
        return given
    found = root / told
    if not found.is_dir():
        raise SettingsError([f"decode.stimuli: expected the pictures of the session, found none at {found}; --stimuli"])
    return found


def _one(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"sub-*/ses-*/func/*_{name}"))
    if len(found) != 1:
        raise CalibrationError(f"{folder}: expected one {name}, found {len(found)}")
    return found[0]
