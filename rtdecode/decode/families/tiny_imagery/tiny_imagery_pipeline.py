"""A tiny imagery pack in a session: predicted semantic tokens, everything else as in the average picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.families.tiny.tiny_stages import TinyStages
from rtdecode.decode.pipeline import Embedded, Float32
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError

_LEAST_VARIANCE = 1e-9


class TinyImageryPipeline:
    """A `Pipeline` that widens the heads' predictions to the tokens that a tiny pack draws.

    Parameters
    ----------
    tiny : TinyPipeline
    stages : TinyStages
        Of the same pack.
    """

    absent: tuple[str, ...] = ()

    def __init__(self, tiny: TinyPipeline, stages: TinyStages) -> None:
        self._tiny = tiny
        self._semantic = stages.groups[0]
        self._groups = len(stages.groups)
        self._mean = stages.prototypes.mean(0).reshape(-1)
        self._width = self._semantic.stop - self._semantic.start

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        n = self._width
        if adapter.basis.shape[1] != 2 * n:
            raise BundleError(
                f"adapter: expected {2 * n} values, semantic tokens of a kind and of one of it, got "
                f"{adapter.basis.shape[1]}: was it calibrated for another pack, or before? Calibrate again"
            )
        basis = np.zeros((len(adapter.basis), len(self._mean)), np.float32)
        basis[:, self._semantic] = adapter.basis[:, :n] + adapter.basis[:, n:]
        mean = self._mean.copy()
        mean[self._semantic] = adapter.token_mean[:n] + adapter.token_mean[n:]
        reliable = np.zeros(self._groups, np.float32)
        variance = np.square(adapter.basis).sum(1)  # of components of variance 1
        reliable[0] = adapter.r2 @ variance / max(float(variance.sum()), _LEAST_VARIANCE)
        self._tiny.take(replace(adapter, basis=basis, token_mean=mean, group_r2=reliable))

    def embed(self, beta: Float32) -> Embedded:
        """Embed a beta."""
        return self._tiny.embed(beta)

    def without(self, embedded: Embedded, components: NDArray[np.bool_]) -> Embedded:
        """Leave components out; see `LeavesOut`."""
        return self._tiny.without(embedded, components)

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Float32:
        """Commit to one thing of the predicted category; see `TinyPipeline.settle`."""
        return self._tiny.settle(embedded, predicted, trial)

    def caption(self, settled: Float32) -> str:
        """Sentence of committed tokens."""
        return self._tiny.caption(settled)

    def picture(self, settled: Float32, trial: str) -> NDArray[np.uint8]:
        """Picture of committed tokens; see `Pipeline.picture`."""
        return self._tiny.picture(settled, trial)
