"""The simulated scanner: a participant in, an export folder full of mosaics out."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.clock import Clock
from rtdecode.simulate import mosaic_writer as mosaic
from rtdecode.simulate.acquisition import Acquisition, NoiseParameters
from rtdecode.simulate.participant import Participant
from rtdecode.simulate.playback import (
    Announce,
    Hold,
    OnVolume,
    Player,
    RunScript,
    ShownTrial,
    Speed,
    free,
    nothing,
)
from rtdecode.simulate.regulation import Regulator
from rtdecode.simulate.visit import Trial

FIRST_SERIES = 3
_FIXED_START = datetime.datetime(2000, 1, 1, 9, 0)
_PAUSE_S = 60.0
_RUNS_A_VISIT = 1000
"""By which the numbers of runs, from which noise follows, are apart between visits."""


class Plan(Protocol):
    """What a scanner is told to play: a visit or films."""

    @property
    def seed(self) -> int:
        """Of the plan."""
        ...

    @property
    def runs(self) -> int:
        """Number of runs."""
        ...

    @property
    def t_r_s(self) -> float:
        """Repetition time, seconds."""
        ...

    @property
    def volumes_per_run(self) -> int:
        """Volumes of each run."""
        ...

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that is seen, in order."""
        ...

    def of_run(self, run: int) -> tuple[Trial, ...]:
        """Return what is seen in one run."""
        ...


class Scanner:
    """Plays a visit into an export folder. The same plan and participant give the same bytes.

    Parameters
    ----------
    plan : VisitPlan, or another `Plan`
    participant : Participant
        Its protocol must have the plan's repetition time.
    export_dir : Path
        Must exist.
    clock : Clock
    speed : float or "max"
        How many times faster than real time, or as fast as volumes are rendered.
    noise : NoiseParameters, optional
    live_dates : bool
        Date each run by the clock instead of by a fixed day.
    regulator : Regulator, optional
        Decides what the participant does in trials of the kind "regulate".
    visit : int
        Which visit of the participant this is: noise, lapses and movements of another one are others.

    Raises
    ------
    ValueError
        If plan and participant disagree on the repetition time, or `speed` is not positive.
    """

    def __init__(
        self,
        plan: Plan,
        participant: Participant,
        export_dir: Path,
        clock: Clock,
        speed: Speed = "max",
        *,
        noise: NoiseParameters | None = None,
        live_dates: bool = False,
        regulator: Regulator | None = None,
        visit: int = 1,
    ) -> None:
        if plan.t_r_s != participant.protocol.t_r_s:
            raise ValueError(f"expected a repetition time of {plan.t_r_s} s, got {participant.protocol.t_r_s} s")
        self._plan = plan
        self._participant = participant
        self._export_dir = export_dir
        self._clock = clock
        self._live_dates = live_dates
        self._regulator = regulator
        self._visit = visit
        self._player = Player(clock, speed)
        self._acquisition = Acquisition(participant, noise)
        self._evoked = participant.responses([t.scene for t in plan.trials], [t.kind for t in plan.trials])

    def play(self, announce: Announce, hold: Hold = free, on_volume: OnVolume = nothing) -> None:
        """Play the whole visit; blocks until its end or until `stop`.

        Parameters
        ----------
        announce : callable
            Takes each message of the experiment: ``run_start``, ``trial``, ``run_end``.
        hold : callable
            Called with each run before it starts; may block.
        on_volume : callable
            Told (run, index) after each volume.
        """
        for run in range(1, self._plan.runs + 1):
            hold(run)
            if self._player.stopped:
                return
            series = self._series(run)
            trials = self._plan.of_run(run)
            shown = [
                ShownTrial(
                    trial=trial.trial,
                    onset_s=trial.onset_s,
                    duration_s=trial.duration_s,
                    stimulus=trial.stimulus,
                    condition=trial.condition,
                )
                for trial in trials
            ]
            script = RunScript(run=run, n_volumes=self._plan.volumes_per_run, t_r_s=self._plan.t_r_s, trials=shown)

            def write(index: int, data: NDArray[np.uint16], series: mosaic.MosaicSeries = series) -> None:
                mosaic.write(self._export_dir, series, index + 1, data)

            self._player.play(script, self.volumes(run), write, announce, on_volume)

    def set_speed(self, speed: Speed) -> None:
        """Play the runs that have not begun at another speed; see `Player.set_speed`."""
        self._player.set_speed(speed)

    def stop(self) -> None:
        """Let `play` end after the present volume; callable from any thread."""
        self._player.stop()

    def volumes(self, run: int) -> Iterator[NDArray[np.uint16]]:
        """Render the volumes of a run without writing them."""
        plan, number = self._plan, run + _RUNS_A_VISIT * (self._visit - 1)
        evoked = self._evoked[[trial.run == run for trial in plan.trials]]
        return self._acquisition.run(number, plan.of_run(run), evoked, plan.volumes_per_run, self._regulator)

    def true_betas(self, affine: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return what each picture evokes in this brain, without trial noise or lapses: the oracle's betas.

        Parameters
        ----------
        affine : array of shape (4, 4)
            Of the mask, to RAS mm; the head is where it is in the first volume.
        mask : array of shape (i, j, k), bool

        Returns
        -------
        array of shape (n_trials, v), float32
            Percent signal change at the plateau of a long stimulus, in the order of ``plan.trials``; 0 where
            nothing responds.
        """
        return self._participant.on_grid(self._evoked, affine, mask)

    def _series(self, run: int) -> mosaic.MosaicSeries:
        plan, protocol = self._plan, self._participant.protocol
        if self._live_dates:
            start = datetime.datetime.fromtimestamp(self._clock.wall())
        else:
            start = _FIXED_START + datetime.timedelta(
                seconds=(run - 1) * (plan.volumes_per_run * plan.t_r_s + _PAUSE_S)
            )
        another = f"-{self._visit}" if self._visit > 1 else ""
        return mosaic.MosaicSeries(
            study=f"visit-{plan.seed}-participant-{self._participant.seed}{another}",
            number=FIRST_SERIES + run - 1,
            affine=protocol.affine,
            t_r_s=protocol.t_r_s,
            slice_times_s=protocol.slice_times_s,
            start=start,
        )
