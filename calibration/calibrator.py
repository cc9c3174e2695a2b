"""The calibration of one participant: trials in, status and a sealed ParticipantBundle out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from safetensors.numpy import save_file

from calibration import identification, regression, scoring
from calibration.judgement import judge
from calibration.ridge import centred
from calibration.targets import Targets, make_targets
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates
from rtdecode.decode.score.evidence import Evidence
from rtdecode.decode.score.retrieval import Scorer
from rtdecode.errors import CalibrationError
from rtdecode.packs import EnginePack
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA, CurvePoint, Figures, Provenance, write_records
from rtdecode.packs.sealed import seal
from rtdecode.statistics import percentile_ranks, permutation_p

_LEAST_STIMULI = 4
"""Held out together at least, where there are enough: each is compared with the others of its fold."""
LEAST_TRIALS = 8
"""Fewer give neither a penalty nor a held-out figure."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationFit:
    """A finished calibration.

    Attributes
    ----------
    adapter : Adapter
    scorer : Scorer
    evidence : Evidence
    figures : Figures
        Held-out, and choices, for the provenance.
    """

    adapter: Adapter
    scorer: Scorer
    evidence: Evidence
    figures: Figures


class Calibrator:
    """Collects calibration trials of one participant.

    Parameters
    ----------
    candidates : Candidates
        Stimuli that may be shown.
    leave_out : {"trial", "run"}
        Held out together: trials of the same stimulus, or of the same run (for stimuli that every run repeats).
    seed : int
        Seeds permutations and noise.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        leave_out: Literal["trial", "run"] = "trial",
        seed: int = 0,
    ) -> None:
        self._candidates = candidates
        self._leave_out = leave_out
        self._seed = seed
        self._betas: list[NDArray[np.float32]] = []
        self._stimuli: list[int] = []
        self._runs: list[int] = []
        self._likeness = _Likeness(candidates)
        self._curve: list[CurvePoint] = []

    def anew(self) -> Calibrator:
        """Return one of the same candidates and options, without trials."""
        return Calibrator(self._candidates, leave_out=self._leave_out, seed=self._seed)

    @property
    def trials(self) -> int:
        """Trials collected."""
        return len(self._betas)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Every status that was asked for."""
        return tuple(self._curve)

    def known(self, names: Sequence[str | None]) -> str | None:
        """First of `names` (stimulus, condition) that is a candidate."""
        return next((name for name in names if name in self._candidates.names), None)

    def add(self, beta: NDArray[np.floating[Any]], *, stimulus: str, run: int) -> None:
        """Add a trial.

        Parameters
        ----------
        beta : ndarray of shape (v,)
            Percent signal change per voxel of the mask.
        stimulus : str
            Identifier of what was shown.
        run : int

        Raises
        ------
        CalibrationError
            The stimulus is unknown, or the beta has another number of voxels than those before.
        """
        index = self._candidates.index(stimulus)
        if index is None:
            raise CalibrationError(f"stimulus {stimulus!r}: expected one of {len(self._candidates.names)} known ones")
        if self._betas and len(beta) != len(self._betas[0]):
            raise CalibrationError(f"expected a beta of {len(self._betas[0])} voxels, got {len(beta)}")
        self._likeness.meet(index)
        self._betas.append(beta.astype(np.float32))
        self._stimuli.append(index)
        self._runs.append(run)

    def status(self) -> CurvePoint:
        """Measure the trials so far by one ridge of all voxels; quick enough to be asked for again and again."""
        status = self._point()
        self._curve.append(status)
        return status

    def fit(self) -> CalibrationFit:
        """Fit the adapter and learn what its predictions are worth.

        Raises
        ------
        CalibrationError
            Too few trials or stimuli, or betas that do not vary.
        """
        if self.trials < LEAST_TRIALS:
            raise CalibrationError(f"expected at least {LEAST_TRIALS} calibration trials, got {self.trials}")
        together = self._held_together()
        if len(set(together)) < 3:
            raise CalibrationError(
                f"expected at least 3 groups of trials to hold out in turn (by {self._leave_out}), "
                f"got {len(set(together))}"
            )
        betas, shown = np.stack(self._betas), np.array(self._stimuli)
        targets = make_targets(self._candidates.tokens[shown], self._candidates.groups)
        choice, predicted = regression.choose(betas, targets, together, regression.sizes_for(betas.shape[1]))
        trust = scoring.reliability(predicted, targets.components)
        adapter = _adapter(regression.fit(betas, targets, choice), targets, trust)
        return self._learn(adapter, betas, targets, trust, predicted * trust.gain, together, choice)

    def _learn(
        self,
        adapter: Adapter,
        betas: NDArray[np.float32],
        targets: Targets,
        trust: scoring.Reliability,
        predicted: NDArray[np.float64],
        together: NDArray[np.int64],
        choice: regression.Choice,
    ) -> CalibrationFit:
        shown = np.array(self._stimuli)
        distinct = np.unique(shown)
        prototypes = adapter.project(self._candidates.prototypes).astype(np.float64)
        category = self._candidates.category[shown]
        stimuli = adapter.project(self._candidates.tokens[distinct]).astype(np.float64)
        judged = judge(
            betas,
            targets,
            together,
            choice.n_voxels,
            category=category,
            prototypes=prototypes,
            parts=self._parts(),
            stimuli=stimuli,
        )
        rng = np.random.default_rng(self._seed)
        true = np.searchsorted(distinct, shown)
        ranks = percentile_ranks(judged.categories)
        p_category = permutation_p(ranks, category, rng, resamples=scoring.N_PERMUTATIONS)
        scorer = scoring.make_scorer(predicted, targets.components, category, prototypes)
        evidence = scoring.make_evidence(judged.categories, category, predicted, scorer, p_category, rng)
        held = [(judged.stimuli[np.ix_(part, true[part])], true[part]) for part in self._parts()]
        of_decoder = float(identification.pooled(held))
        point = self._point()
        figures = Figures(
            trials=self.trials,
            voxels=len(adapter.voxels),
            mask_voxels=betas.shape[1],
            components=[block.stop - block.start for block in targets.blocks],
            penalties=list(choice.penalties),
            group_r2=[round(float(v), 4) for v in adapter.group_r2],
            live_components=int(np.sum(trust.gain > 0)),
            category_accuracy=float(np.mean(judged.categories.argmax(1) == category)),
            category_p=p_category,
            percentile=point.percentile,
            percentile_interval=point.interval,
            percentile_p=point.p_value,
            decoder_percentile=None if np.isnan(of_decoder) else of_decoder,
            leave_out=self._leave_out,
            seed=self._seed,
            categories=list(self._candidates.categories),
            stimuli=[self._candidates.names[i] for i in distinct],
        )
        return CalibrationFit(adapter=adapter, scorer=scorer, evidence=evidence, figures=figures)

    def _held_together(self) -> NDArray[np.int64]:
        return np.array(self._runs if self._leave_out == "run" else self._stimuli, dtype=np.int64)

    def _parts(self) -> list[NDArray[np.int64]]:
        return regression.folds(self._held_together(), least=1 if self._leave_out == "run" else _LEAST_STIMULI)

    def _point(self) -> CurvePoint:
        parts = self._parts() if self.trials >= LEAST_TRIALS else []
        if len(parts) < 2:
            return CurvePoint(trials=self.trials)
        folds = identification.make_folds(np.stack(self._betas), parts)
        shown, likeness = self._likeness.places(self._stimuli), centred(self._likeness.products)
        runs = np.array(self._runs) if self._leave_out == "run" else None
        found = float(identification.percentile(folds, likeness, shown))
        if np.isnan(found):
            return CurvePoint(trials=self.trials)
        null = identification.shuffled(folds, likeness, shown, runs, np.random.default_rng(self._seed))
        return CurvePoint(
            trials=self.trials, percentile=found, interval=null.interval(found), p_value=null.p_value(found)
        )


class _Likeness:
    """Inner products of the tokens of the stimuli shown, which grow as stimuli are met."""

    def __init__(self, candidates: Candidates) -> None:
        self._tokens = candidates.tokens
        self._met: dict[int, int] = {}
        self.products = np.empty((0, 0))

    def meet(self, stimulus: int) -> None:
        """Add a stimulus, unless it is known."""
        if stimulus in self._met:
            return
        self._met[stimulus] = n = len(self._met)
        self.products = np.pad(self.products, (0, 1))
        row = [float(np.vdot(self._tokens[other], self._tokens[stimulus])) for other in self._met]
        self.products[n] = self.products[:, n] = row

    def places(self, stimuli: Sequence[int]) -> NDArray[np.int64]:
        """Rows of stimuli in `products`."""
        return np.array([self._met[stimulus] for stimulus in stimuli], dtype=np.int64)


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
        save_file({**fit.scorer.tensors(), **fit.evidence.tensors()}, folder / "evidence.safetensors")
        write_records(folder, provenance, curve)
        for name, source in (copies or {}).items():
            shutil.copyfile(source, folder / name)

    return seal(target, PARTICIPANT_SCHEMA, write)


def _adapter(fitted: regression.Regression, targets: Targets, trust: scoring.Reliability) -> Adapter:
    def share(block: slice) -> float:
        variance = targets.variance[block]
        return float((trust.r2[block] * variance).sum() / variance.sum()) if len(variance) else 0.0

    def single(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(values, dtype=np.float32)

    return Adapter(
        voxels=fitted.voxels.astype(np.int64),
        mean=single(fitted.mean),
        scale=single(fitted.scale),
        weights=single(fitted.weights * trust.gain),
        intercept=single(fitted.intercept * trust.gain),
        basis=single(targets.basis),
        token_mean=single(targets.token_mean),
        r2=single(trust.r2),
        group_r2=np.array([share(block) for block in targets.blocks], dtype=np.float32),
    )
