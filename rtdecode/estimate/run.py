"""One run as it grows: the masked series, its confounds, and the betas that it gives so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtdecode.estimate import design
from rtdecode.estimate.glm import Expectation, apply_weights, single_trial_design, weights
from rtdecode.estimate.learning import FinishedRun
from rtdecode.records import TrialEvent

FloatArray = NDArray[np.float64]

_FIRST_CAPACITY = 128
_ENOUGH = 16  # volumes from which anything can be learned
_DIM = 1e-3  # of the median baseline: darker voxels have no percent


class RunSeries:
    """The volumes of one run in use.

    Parameters
    ----------
    timing : design.RunTiming
    confounds : bool
        Whether the motion parameters are regressors.
    """

    def __init__(self, timing: design.RunTiming, *, confounds: bool) -> None:
        self.timing = timing
        self._confounds = confounds
        self._rows: list[int] = []
        self._motion: list[FloatArray] = []
        self._first = np.zeros(0, np.float32)
        self._differences = np.zeros((0, 0), np.float32)
        self._sum = np.zeros(0)

    def add(self, index: int, masked: NDArray[np.float32], motion: FloatArray) -> None:
        """Take a volume into use.

        It is stored as the difference from the first one: float32 then keeps what the weights, which sum to
        zero, will look at.

        Parameters
        ----------
        index : int
        masked : array of shape (v,), float32
        motion : array of shape (6,), float64
        """
        count = len(self._rows)
        if count == 0:
            self._first = masked
            self._differences = np.empty((_FIRST_CAPACITY, len(masked)), np.float32)
            self._sum = np.zeros(len(masked))
        elif count == len(self._differences):
            self._differences = np.concatenate([self._differences, np.empty_like(self._differences)])
        np.subtract(masked, self._first, out=self._differences[count])
        self._sum += self._differences[count]
        self._rows.append(index)
        self._motion.append(motion)

    def betas(
        self, wanted: Sequence[int], events: Sequence[TrialEvent], expected: Expectation
    ) -> tuple[NDArray[np.float32], list[str | None]]:
        """Estimate the responses to some trials from all volumes in use.

        Parameters
        ----------
        wanted : sequence of n int
            Places in `events`.
        events : sequence of TrialEvent
            All that is known of the run.
        expected : Expectation

        Returns
        -------
        values : array of shape (n, v), float32
            Percent signal change; nan where there is no estimate.
        reasons : list of n (str or None)
            Why there is none.
        """
        values = np.full((len(wanted), len(self._first)), np.nan, np.float32)
        reasons: list[str | None] = [None] * len(wanted)
        if not self._rows:
            return values, ["no usable volume in the run"] * len(wanted)
        rows = np.array(self._rows, np.int64)
        regressors, entered = design.trial_regressors(self.timing, rows, events, expected.lag_s)
        column = {place: i for i, place in enumerate(np.flatnonzero(entered).tolist())}
        ready = [i for i, place in enumerate(wanted) if place in column]
        for i, place in enumerate(wanted):
            if place not in column:
                reasons[i] = f"less than {design.ENTRY_ENERGY:.0%} of the response was observed"
        if not ready:
            return values, reasons
        drift, motion, scales = design.scaled_drift(self.timing, rows), self._motion_regressors(), expected.scales
        model, columns = single_trial_design(rows, drift, motion, regressors, scales)
        targets = [columns[column[wanted[i]]] for i in ready]
        try:
            functional = weights(model, targets, 0.0 if scales is None else scales.rho)
        except np.linalg.LinAlgError as error:
            return values, [reason or str(error) for reason in reasons]
        found = self._to_percent() * apply_weights(functional, self._used())
        if expected.mean_response is not None:
            found -= np.outer(functional @ regressors.sum(1), expected.mean_response)
        values[ready] = found
        return values, reasons

    def finished(self, events: Sequence[TrialEvent]) -> FinishedRun | None:
        """Hand over what later runs may learn from; None if that is nothing."""
        rows = np.array(self._rows, np.int64)
        if len(rows) < _ENOUGH or not design.trial_regressors(self.timing, rows, events, 0.0)[1].any():
            return None
        return FinishedRun(
            timing=self.timing,
            events=tuple(events),
            rows=rows,
            motion=self._motion_regressors(),
            percent=(self._to_percent() * (self._used() - self._sum / len(rows))).astype(np.float32),
        )

    def _used(self) -> NDArray[np.float32]:
        return self._differences[: len(self._rows)]

    def _to_percent(self) -> FloatArray:
        """Return percent per unit, 100 / mean of the run so far; zero for voxels without signal."""
        baseline = self._first + self._sum / len(self._rows)
        bright = baseline > _DIM * np.median(baseline)
        return np.asarray(np.where(bright, 100.0 / np.where(bright, baseline, 1.0), 0.0))

    def _motion_regressors(self) -> FloatArray:
        if not self._confounds:
            return np.zeros((len(self._rows), 0))
        return design.motion_regressors(self._motion)
