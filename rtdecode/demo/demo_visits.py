"""The participants of a demo: a simulated one and a recorded one, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.clock import Clock
from rtdecode.errors import SettingsError
from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.simulate.imagery_visit import CATCH, CUE, ImageryPlan
from rtdecode.simulate.participant import make_participant
from rtdecode.simulate.playback import Announce, OnVolume, Speed
from rtdecode.simulate.replay import ReplayScanner
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import NULL, VisitPlan

Hold = Callable[[int], Speed]
_AFTER_EPOCH_S = 8.0
"""Seconds from the end of an imagery epoch to its final beta: the response has passed its height."""


class Visit(Protocol):
    """What a demo asks of its participant.

    Attributes
    ----------
    participant : str
    settings : dict
        Sections of the settings that follow from the data.
    calibration_runs, runs, decoded_trials : int
    totals : dict of str to int
        Volumes, calibration trials and decoded trials to expect, by their label on screen.
    repeats : bool
        Whether stimuli are categories shown again and again rather than pictures shown once.
    imagery : ImageryProtocol or None
        What is imagined in the decoded runs; None where they show pictures.
    """

    participant: str
    settings: dict[str, Any]
    calibration_runs: int
    runs: int
    decoded_trials: int
    totals: dict[str, int]
    repeats: bool
    imagery: ImageryProtocol | None

    def play(self, announce: Announce, hold: Hold, on_volume: OnVolume) -> None:
        """Scan.

        Parameters
        ----------
        announce : callable
            Takes each message of the experiment.
        hold : callable
            Called before each run with its number; may block, and returns the speed of the run.
        on_volume : callable
            Called with run and index after each volume; may block.
        """
        ...

    def true_betas(self, affine: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]] | None:
        """Noiseless response of each decoded trial in the voxels of `mask`, or None if nobody knows it."""
        ...


class SimulatedVisit:
    """A simulated participant; see `rtdecode.simulate`.

    Parameters
    ----------
    out : Path
        Folder of the demo; holds ``export`` and gets ``stimuli``.
    clock : Clock
    seed : int
    shuffle_labels : bool
    """

    repeats = False
    imagery: ImageryProtocol | None = None

    def __init__(self, out: Path, clock: Clock, *, seed: int, shuffle_labels: bool) -> None:
        self._begin(out, clock, VisitPlan(seed=seed, null_runs=1, shuffle_labels=shuffle_labels))

    def _begin(self, out: Path, clock: Clock, plan: VisitPlan) -> None:
        self._plan, seed = plan, plan.seed
        plan.write_stimuli(out / "stimuli")
        participant = make_participant(seed)
        participant.write_region(out / "region.nii.gz")
        self._scanner = Scanner(plan, participant, out / "export", clock)
        self.participant = f"sim{seed}"
        self.calibration_runs, self.runs = plan.calibration_runs, plan.runs
        calibration = sum(t.run <= plan.calibration_runs and t.condition != NULL for t in plan.trials)
        self.decoded_trials = sum(t.run > plan.calibration_runs and t.condition != CUE for t in plan.trials)
        self.settings: dict[str, Any] = {
            "estimate": {"mask": "region.nii.gz"},
            "decode": {"stimuli": "stimuli"},
            "calibration": {"runs": plan.calibration_runs, "leave_out": "trial"},
        }
        self.totals = _totals(plan.runs * plan.volumes_per_run, calibration, self.decoded_trials)

    def play(self, announce: Announce, hold: Hold, on_volume: OnVolume) -> None:
        """Scan."""
        self._scanner.play(announce, lambda run: self._scanner.set_speed(hold(run)), on_volume)

    def true_betas(self, affine: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Noiseless response of each decoded trial in the voxels of `mask`, percent signal change.

        As the estimated betas, they are deviations from the mean response of the calibration trials.
        """
        every = self._scanner.true_betas(affine, mask)
        runs = np.array([trial.run for trial in self._plan.trials])
        every = every - every[runs <= self.calibration_runs].mean(axis=0)
        return {t.trial: every[i] for i, t in enumerate(self._plan.trials) if t.run > self.calibration_runs}


class ImageryVisit(SimulatedVisit):
    """A simulated participant who is calibrated on pictures and then imagines some on cue; see `ImageryPlan`.

    Parameters are those of `SimulatedVisit`; `shuffle_labels` announces cues in random order.
    """

    def __init__(self, out: Path, clock: Clock, *, seed: int, shuffle_labels: bool) -> None:
        plan = ImageryPlan(seed=seed, null_runs=1, shuffle_labels=shuffle_labels)
        self._begin(out, clock, plan)
        cues = {chr(ord("A") + i): stimulus for i, stimulus in enumerate(plan.targets)}
        self.imagery = ImageryProtocol(targets=cues, cue=CUE, catch=CATCH)
        for section, values in imagery_settings(plan).items():
            self.settings[section] |= values


def imagery_settings(plan: ImageryPlan) -> dict[str, dict[str, Any]]:
    """Sections of the settings of a visit in which pictures are imagined."""
    return {
        "decode": {"pack": "tiny-imagery", "undecoded_conditions": [CUE]},
        "calibration": {"null_stimuli": [NULL, CUE, CATCH]},
        # Nothing is drawn before the epoch is over: what is seen would take the place of what is imagined.
        "estimate": {"revise_at_s": [], "final_at_s": plan.epoch_s + _AFTER_EPOCH_S},
    }


class RecordedVisit:
    """A recorded participant: run folders with a 4-D NIfTI that is motion-corrected already, events and motion.

    Parameters
    ----------
    out : Path
        Folder of the demo; holds ``export`` and gets ``motion``.
    clock : Clock
    data : Path
        Folder of the run folders.
    calibrate_runs : int
        The first runs, which calibrate.

    Raises
    ------
    SettingsError
        The folder holds no such runs, or none would be left to decode.
    """

    repeats = True
    imagery: ImageryProtocol | None = None

    def __init__(self, out: Path, clock: Clock, data: Path, calibrate_runs: int) -> None:
        try:
            self._scanner = ReplayScanner(data, out / "export", clock)
            self._scanner.write_motion(out / "motion")
        except (FileNotFoundError, ValueError) as error:
            raise SettingsError([f"--data: {error}"]) from None
        scripts = self._scanner.scripts
        found = [script.run for script in scripts]
        if found != list(range(1, len(found) + 1)) or not 1 <= calibrate_runs < len(found):
            raise SettingsError(
                [f"--calibrate-runs: expected runs 1 to n and more after them, got {calibrate_runs} of {found}"]
            )
        calibration = sum(len(script.trials) for script in scripts[:calibrate_runs])
        self.participant = "".join(c for c in data.resolve().name if c.isalnum())[:24] or "recorded"
        self.calibration_runs, self.runs = calibrate_runs, len(scripts)
        self.decoded_trials = sum(len(script.trials) for script in scripts[calibrate_runs:])
        longest = max(trial.duration_s for script in scripts for trial in script.trials)
        t_r_s = scripts[0].t_r_s
        motion = {"motion_file": "motion"} if any(run.motion for run in self._scanner.recorded) else {}
        self.settings = {
            "estimate": {
                "registration": "off",
                **motion,
                "revise_at_s": [longest + n * t_r_s for n in range(3)],
                "final_at_s": longest + 3 * t_r_s,
            },
            "calibration": {"runs": self.calibration_runs, "leave_out": "run"},
        }
        self.totals = _totals(sum(script.n_volumes for script in scripts), calibration, self.decoded_trials)

    def play(self, announce: Announce, hold: Hold, on_volume: OnVolume) -> None:
        """Replay."""
        self._scanner.play(announce, lambda run: self._scanner.set_speed(hold(run)), on_volume)

    def true_betas(self, affine: NDArray[np.float64], mask: NDArray[np.bool_]) -> None:
        """Nobody knows them."""


def _totals(volumes: int, calibration: int, decoded: int) -> dict[str, int]:
    return {"volumes": volumes, "calibration trials": calibration, "decoded trials": decoded}
