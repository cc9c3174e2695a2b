"""Running averages over repeats of a stimulus: of the final betas of its earlier trials, and the one at hand."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.records import BetaUpdate


class Repeats:
    """Follows the betas that are decoded; a part of the fold over inputs.

    Parameters
    ----------
    wanted : bool
        Otherwise betas stay as they are.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._finals: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}

    def follow(self, beta: BetaUpdate) -> BetaUpdate:
        """Take a valid beta; return it with the mean over its stimulus's trials so far, where there are earlier ones.

        Each voxel's mean is over the trials that have an estimate there. A trial without a stimulus repeats nothing.
        """
        event = beta.event
        if not self._wanted or event.stimulus is None:
            return beta
        earlier = [final for _, final in self._finals.get(event.stimulus, [])]
        if beta.final:
            self._finals.setdefault(event.stimulus, []).append((event.run, beta.beta))
        if not earlier:
            return beta
        rows = np.stack([*earlier, beta.beta])
        mean: NDArray[np.float64]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # voxels without any estimate
            mean = np.nanmean(np.where(np.isfinite(rows), rows, np.nan), axis=0, dtype=np.float64)
        return replace(beta, average=mean.astype(np.float32), shown=len(rows))

    def leave_out(self, run: int) -> None:
        """Forget the trials of a run."""
        for stimulus, finals in self._finals.items():
            self._finals[stimulus] = [one for one in finals if one[0] != run]
