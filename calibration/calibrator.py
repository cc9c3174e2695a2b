"""The calibration of one participant: trials in, status and a sealed ParticipantBundle out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from safetensors.numpy import save_file

from calibration import regression
from calibration.adapter_fit import Trials
from calibration.advice import Plan
from calibration.curve_point import curve_point
from calibration.earlier_visit import EarlierVisit, of_both
from calibration.learned_prior import STATISTICS, LearnedPrior
from calibration.likeness import Likeness
from calibration.participant_fit import CalibrationFit, fit_participant
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError
from rtdecode.estimate.reestimate import CalibrationBetas
from rtdecode.packs import EnginePack
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA, CurvePoint, Provenance, write_records
from rtdecode.packs.sealed import seal

_LEAST_STIMULI = 4
"""Held out together at least, where there are enough: each is compared with the others of its fold."""
_BLOCKS = 4
"""Parts of a single run that are held out in turn."""
NO_PLAN = Plan()
LEAST_TRIALS = 8
"""Fewer give neither a penalty nor a held-out figure."""


class Calibrator:
    """Collects calibration trials of one participant.

    Parameters
    ----------
    candidates : Candidates
        Stimuli that may be shown.
    leave_out : {"trial", "run"}
        Held out together: trials of the same stimulus, or of the same run (for stimuli that every run repeats; a
        single run is held out in parts).
    seed : int
        Seeds permutations and noise.
    prior : LearnedPrior or None
        What earlier participants taught; it has a part once `lies_at` has told where the voxels are.
    earlier : EarlierVisit or None
        A calibration of the same participant and voxels whose trials are learned from as well.

    Raises
    ------
    CalibrationError
        The earlier visit had other categories.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        leave_out: Literal["trial", "run"] = "trial",
        seed: int = 0,
        prior: LearnedPrior | None = None,
        earlier: EarlierVisit | None = None,
    ) -> None:
        self._candidates, self._earlier = candidates, earlier
        if earlier is not None:
            self._candidates, self._earlier_places = of_both(candidates, earlier)
        self._leave_out = leave_out
        self._seed = seed
        self._prior = prior
        self._places_mm: NDArray[np.float64] | None = None
        self._betas: dict[str, NDArray[np.float32]] = {}
        self._null_betas: dict[str, NDArray[np.float32]] = {}
        self._null_places: list[int] = []
        self._null_runs: list[int] = []
        self._rest: NDArray[np.float32] | None = None
        self._rest_runs = np.zeros(0, np.int64)
        self._stimuli: list[int] = []
        self._runs: list[int] = []
        self._likeness = Likeness(self._candidates)
        self._curve: list[CurvePoint] = []

    def anew(self) -> Calibrator:
        """Return one of the same candidates and options, without trials."""
        return Calibrator(
            self._candidates, leave_out=self._leave_out, seed=self._seed, prior=self._prior, earlier=self._earlier
        )

    @property
    def wants_places(self) -> bool:
        """Whether a group prior waits to be told where the voxels are."""
        return self._prior is not None and self._places_mm is None

    def lies_at(self, places_mm: NDArray[np.float64]) -> None:
        """Take the places (v, 3) of the voxels in the common space."""
        self._places_mm = places_mm

    @property
    def earlier(self) -> EarlierVisit | None:
        """The earlier visit whose trials are learned from as well."""
        return self._earlier

    @property
    def trials(self) -> int:
        """Trials collected, those of an earlier visit and those without a picture left out."""
        return len(self._betas)

    @property
    def null_trials(self) -> int:
        """Trials collected that showed a content-free picture."""
        return len(self._null_betas)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Every status that was asked for."""
        return tuple(self._curve)

    def known(self, names: Sequence[str | None]) -> str | None:
        """First of `names` (stimulus, condition) that is a candidate."""
        return next((name for name in names if name in self._candidates.names), None)

    def add(self, beta: NDArray[np.floating[Any]], *, trial: str, stimulus: str, run: int) -> None:
        """Add a trial.

        Parameters
        ----------
        beta : ndarray of shape (v,)
            Percent signal change per voxel of the mask.
        trial : str
            Its name in the session.
        stimulus : str
            Identifier of what was shown.
        run : int

        Raises
        ------
        CalibrationError
            The stimulus is unknown, the trial is known, or the beta has no value or another number of voxels than
            those before.
        """
        index = self._candidates.index(stimulus)
        if index is None:
            raise CalibrationError(f"stimulus {stimulus!r}: expected one of {len(self._candidates.names)} known ones")
        self._betas[trial] = self._checked(beta, trial)
        self._likeness.meet(index)
        self._stimuli.append(index)
        self._runs.append(run)

    def add_null(self, beta: NDArray[np.floating[Any]], *, trial: str, run: int) -> None:
        """Add a trial that showed a content-free picture; the decoder does not learn from it, evidence does.

        Raises
        ------
        CalibrationError
            As `add`.
        """
        self._null_betas[trial] = self._checked(beta, trial)
        self._null_places.append(self.trials)
        self._null_runs.append(run)

    def leave_out_run(self, run: int) -> int:
        """Forget the trials of a run; return how many there were."""
        kept = np.array(self._runs, np.int64) != run
        before = np.concatenate([[0], np.cumsum(kept)])
        left = len(kept) - int(kept.sum()) + self._null_runs.count(run)
        nulls = [n for n, own in enumerate(self._null_runs) if own != run]
        self._null_betas = dict(list(self._null_betas.items())[n] for n in nulls)
        self._null_places = [int(before[self._null_places[n]]) for n in nulls]
        self._null_runs = [self._null_runs[n] for n in nulls]
        self._betas = {trial: beta for (trial, beta), stays in zip(self._betas.items(), kept, strict=True) if stays}
        self._stimuli = [stimulus for stimulus, stays in zip(self._stimuli, kept, strict=True) if stays]
        self._runs = [own for own in self._runs if own != run]
        return left

    def take_again(self, betas: CalibrationBetas) -> None:
        """Take better estimates of the trials collected, and what rest gives.

        Raises
        ------
        CalibrationError
            They have another number of voxels.
        """
        if self._betas and betas.rest.shape[1] != self._n_voxels:
            raise CalibrationError(f"expected betas of {self._n_voxels} voxels, got {betas.rest.shape[1]}")
        for kept in (self._betas, self._null_betas):
            for trial in kept.keys() & betas.trials.keys():
                if np.isfinite(betas.trials[trial]).any():
                    kept[trial] = betas.trials[trial]
        self._rest, self._rest_runs = betas.rest, betas.rest_run

    @property
    def _n_voxels(self) -> int:
        return len(next(iter((*self._betas.values(), *self._null_betas.values())), ()))

    def _checked(self, beta: NDArray[np.floating[Any]], trial: str) -> NDArray[np.float32]:
        if trial in self._betas or trial in self._null_betas:
            raise CalibrationError(f"trial {trial}: expected a new trial, got one that was collected")
        if (self._betas or self._null_betas) and len(beta) != self._n_voxels:
            raise CalibrationError(f"trial {trial}: expected a beta of {self._n_voxels} voxels, got {len(beta)}")
        if not np.isfinite(beta).any():
            raise CalibrationError(f"trial {trial}: expected a beta with an estimate, got none in any voxel")
        return beta.astype(np.float32)

    def status(self, plan: Plan = NO_PLAN) -> CurvePoint:
        """Measure the trials so far; quick enough to be asked for after every trial."""
        status = self._point(plan)
        self._curve.append(status)
        return status

    def fit(self) -> CalibrationFit:
        """Fit the decoder and learn what its predictions are worth.

        Raises
        ------
        CalibrationError
            Too few trials or stimuli, or betas that do not vary.
        """
        return fit_participant(
            self.taken(), self._candidates, self._point(NO_PLAN), leave_out=self._leave_out, seed=self._seed
        )

    def taken(self) -> Trials:
        """Return the trials so far, as a decoder is fitted to them.

        Raises
        ------
        CalibrationError
            Too few trials or stimuli.
        """
        if self.trials < LEAST_TRIALS:
            raise CalibrationError(f"expected at least {LEAST_TRIALS} calibration trials, got {self.trials}")
        betas = np.stack(list(self._betas.values()))
        nulls = np.stack(list(self._null_betas.values())) if self._null_betas else betas[:0]
        trials = Trials(
            betas=betas,
            null_betas=nulls,
            null_places=np.array(self._null_places, np.int64),
            null_run=np.array(self._null_runs, np.int64),
            rest_betas=betas[:0] if self._rest is None else self._rest,
            rest_run=self._rest_runs,
            run=np.array(self._runs),
            shown=np.array(self._stimuli),
            together=self._held_together(),
            parts=[],
            prior=self._prior,
            places_mm=self._places_mm,
        )
        if self._earlier is not None:
            trials = self._earlier.before(trials, self._earlier_places, leave_out=self._leave_out, seed=self._seed)
        parts = self._folds_of(trials.together)
        if len(parts) < 2:
            raise CalibrationError(
                f"expected at least 2 groups of trials to hold out in turn (by {self._leave_out}), got {len(parts)}"
            )
        return replace(trials, parts=parts)

    def collected(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Betas (n, v) of the trials, and the candidate that each showed."""
        return np.stack(list(self._betas.values())), np.array(self._stimuli, np.int64)

    def folds(self) -> list[NDArray[np.int64]]:
        """Trials that are held out together."""
        return self._folds_of(self._held_together())

    def _held_together(self) -> NDArray[np.int64]:
        if self._leave_out == "trial":
            return np.array(self._stimuli, dtype=np.int64)
        if len(set(self._runs)) > 1:
            return np.array(self._runs, dtype=np.int64)
        return np.arange(self.trials) * _BLOCKS // max(self.trials, 1)

    def _folds_of(self, together: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return regression.folds(together, least=1 if self._leave_out == "run" else _LEAST_STIMULI)

    def _point(self, plan: Plan) -> CurvePoint:
        if self.trials < LEAST_TRIALS or len(self.folds()) < 2:
            return CurvePoint(trials=self.trials)
        return curve_point(
            self.taken(), self._likeness, self.folds(), leave_out=self._leave_out, seed=self._seed, plan=plan
        )


def write_bundle(
    target: Path,
    fit: CalibrationFit,
    *,
    pack: EnginePack,
    participant: str,
    session: str,
    curve: tuple[CurvePoint, ...] = (),
    left_out: Sequence[str] = (),
    copies: Mapping[str, Path] | None = None,
) -> str:
    """Seal a ParticipantBundle.

    Parameters
    ----------
    target : Path
        Folder to make.
    fit : Fit
    pack : EnginePack
        Whose tokens were the targets.
    participant, session : str
    curve : tuple of CurvePoint
    left_out : sequence of str
        Trials that could not be used, each with its reason.
    copies : mapping of str to Path, or None
        Files to take along, by their name in the bundle (mask and reference).

    Returns
    -------
    str
        Identity of the bundle.
    """
    provenance = Provenance(
        **structs.asdict(fit.figures),
        pack=pack.identity,
        pack_name=pack.name,
        participant=participant,
        session=session,
        left_out=list(left_out),
    )

    def write(folder: Path) -> None:
        save_file(fit.adapter.tensors(), folder / "adapter.safetensors")
        save_file(fit.encoding.tensors(), folder / "encoding.safetensors")
        save_file(fit.evidence.tensors(), folder / "evidence.safetensors")
        save_file(fit.statistics, folder / STATISTICS)
        write_records(folder, provenance, curve)
        for name, source in (copies or {}).items():
            shutil.copyfile(source, folder / name)

    return seal(target, PARTICIPANT_SCHEMA, write)
