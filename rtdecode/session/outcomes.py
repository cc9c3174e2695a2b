"""What a run leaves beside its tables: what it has taught, and plots, for which there is time at the end."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate.estimator import Estimator
from rtdecode.estimate.inputs import scaled
from rtdecode.estimate.reestimate import save_betas
from rtdecode.estimate.report import RunReport, overlay, place_of_head
from rtdecode.records import RegisteredVolume, Volume
from rtdecode.session.recording import Recording
from rtdecode.settings import Settings

_log = logging.getLogger(__name__)


class Outcomes:
    """Writes them; of the line's thread.

    Parameters
    ----------
    settings : Settings
    estimator : Estimator
    recording : Recording
    """

    def __init__(self, settings: Settings, estimator: Estimator, recording: Recording) -> None:
        self._settings = settings
        self._estimator = estimator
        self._recording = recording
        self._waiting: list[int] = []

    def head(self, volume: Volume, registered: RegisteredVolume) -> NDArray[np.float32]:
        """Draw where the head lies today in the space of an earlier visit; return the volume (i, j, k) in it."""
        space = self._estimator.space
        moved = space.aligned(scaled(volume, space.data.shape), volume.affine, registered.matrix)
        with self._recording.leaving_out(self._recording.alignment_path()) as path:
            overlay(space.data, moved, path, place_of_head(registered))
        _log.info("%s; look at %s", place_of_head(registered), path)
        return moved

    def keep(self, run: int, report: RunReport) -> None:
        """Keep what the plots of a run are made of."""
        with self._recording.leaving_out(self._kept(run)) as path:
            report.store(path, self._estimator.last_design)
            self._waiting.append(run)

    def draw(self) -> None:
        """Write tSNR maps and plots of all runs that were kept."""
        for place, number in enumerate(self._waiting):
            _log.info("writing the plots of run %d (%d of %d)", number, place + 1, len(self._waiting))
            try:
                self._draw(number)
            except Exception:  # plots can be drawn again; what ends a session goes on
                _log.exception("the plots of run %d are left out", number)
        self._waiting.clear()

    def _draw(self, run: int) -> None:
        kept = self._kept(run)
        report, design = RunReport.stored(kept)
        space, stem = self._estimator.space, self._recording.stem(run)
        with self._recording.leaving_out(stem):
            report.write(stem, space.mask, space.affine, self._settings.estimate.censor_fd_mm, design)
        kept.unlink()

    def _kept(self, run: int) -> Path:
        return self._recording.scratch / f"report-run-{run:02d}.npz"

    def learn(self, run: int, planned: int) -> None:
        """Write what a calibration run taught; its betas anew, if calibration may be over with it.

        Parameters
        ----------
        run : int
            That has ended.
        planned : int
            With which calibration is planned to end.
        """
        learned, settings = self._estimator.learned, self._settings.calibration
        if learned is None or not self._estimator.calibrates or run > self._estimator.calibration_runs:
            return
        with self._recording.leaving_out(self._recording.model_path()) as path:
            learned.save(path, self._settings.estimate)
        may_end = run == planned or settings.stop == "advice"
        betas = self._estimator.reestimated() if may_end else None
        if betas is not None:
            with self._recording.leaving_out(self._recording.calibration_betas_path()) as path:
                save_betas(path, betas)
