"""A simulated session through the whole estimation chain, in one process: volumes, registration, causal betas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate import Estimator
from rtdecode.estimate.reestimate import CalibrationBetas
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.acquisition import Acquisition
from rtdecode.simulate.participant import Participant
from rtdecode.simulate.visit import Trial, VisitPlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedSession:
    """Betas of every trial that has a final one.

    Attributes
    ----------
    trials : tuple of Trial
    betas : ndarray of shape (n, v), float32
        Final ones.
    early : tuple of (m, v) ndarrays, float32
        Of each trial, those before.
    learned : CalibrationBetas
        The calibration runs', estimated again.
    """

    trials: tuple[Trial, ...]
    betas: NDArray[np.float32]
    early: tuple[NDArray[np.float32], ...]
    learned: CalibrationBetas


def simulate_session(
    plan: VisitPlan, brains: list[Participant], final_at_s: float = EstimateSettings().final_at_s
) -> SimulatedSession:
    """Scan a visit, and estimate its betas as the daemon does.

    Parameters
    ----------
    plan : VisitPlan
    brains : list of Participant
        One a run, all in the same head.
    final_at_s : float
        Seconds after onset at which betas are final; of the usual early ones those before it are estimated.
    """
    with TemporaryDirectory() as folder:
        region = Path(folder) / "region.nii.gz"
        brains[0].write_region(region)
        revise_at_s = tuple(s for s in EstimateSettings().revise_at_s if s < final_at_s)
        settings = EstimateSettings(mask=region, revise_at_s=revise_at_s, final_at_s=final_at_s)
        estimator = Estimator(settings, "bench", calibration_runs=plan.calibration_runs)
        found: list[tuple[Trial, NDArray[np.float32]]] = []
        early: list[NDArray[np.float32]] = []
        learned: CalibrationBetas | None = None
        for run, brain in enumerate(brains, start=1):
            trials = plan.of_run(run)
            estimator.start_run(run, plan.t_r_s)
            for trial in trials:
                event = TrialEvent(run=run, trial=trial.trial, onset_s=trial.onset_s, duration_s=trial.duration_s)
                estimator.add_event(event)
            updates = []
            evoked = brain.responses([trial.scene for trial in trials])
            for index, data in enumerate(Acquisition(brain).run(run, trials, evoked, plan.volumes_per_run)):
                updates += estimator.step(_volume(brain, run, index, data))[1]
            updates += estimator.finish_run()
            final = {u.event.trial: u.beta for u in updates if u.final and u.invalid is None}
            for trial in trials:
                if trial.trial in final:
                    found.append((trial, final[trial.trial]))
                    before = [u.beta for u in updates if u.event.trial == trial.trial and not u.final]
                    early.append(np.array(before, np.float32))
            if run == plan.calibration_runs:
                learned = estimator.reestimated()
    assert learned is not None
    return SimulatedSession(
        trials=tuple(trial for trial, _ in found),
        betas=np.stack([beta for _, beta in found]),
        early=tuple(early),
        learned=learned,
    )


def other_brain(participant: Participant, other: Participant) -> Participant:
    """Return the participant's head with what another one's voxels answer to."""
    return replace(participant, mean=other.mean, weights=other.weights, noise=other.noise)


def _volume(brain: Participant, run: int, index: int, data: NDArray[Any]) -> Volume:
    protocol = brain.protocol
    return Volume(
        stamp=Stamp(session="bench", run=run, volume=index, received_s=0.0, received_mono_s=0.0),
        data=data,
        affine=protocol.affine,
        t_r_s=protocol.t_r_s,
        slice_times_s=protocol.slice_times_s,
        series_uid=str(run),
        instance=index + 1,
        path=f"{run}/{index}",
    )
