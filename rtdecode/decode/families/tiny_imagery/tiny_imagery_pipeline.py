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
        self._width = self._semantic.stop - self._semantic.start + len(stages.vocabulary)

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        if adapter.basis.shape[1] != self._width:
            raise BundleError(
                f"adapter: expected {self._width} values, semantic tokens and words, got {adapter.basis.shape[1]}: was "
                "it calibrated for another pack?"
            )
        n = self._semantic.stop - self._semantic.start
        basis = np.zeros((len(adapter.basis), len(self._mean)), np.float32)
        basis[:, self._semantic] = adapter.basis[:, :n]
        mean = self._mean.copy()
        mean[self._semantic] = adapter.token_mean[:n]
        reliable = np.zeros(self._groups, np.float32)
        reliable[0] = adapter.group_r2[0]
        self._tiny.take(replace(adapter, basis=basis, token_mean=mean, group_r2=reliable))

    def embed(self, beta: Float32) -> Embedded:
        """Embed a beta."""
        return self._tiny.embed(beta)

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Float32:
        """Commit to one thing of the predicted category; see `TinyPipeline.settle`."""
        return self._tiny.settle(embedded, predicted, trial)

    def caption(self, settled: Float32) -> str:
        """Sentence of committed tokens."""
        return self._tiny.caption(settled)

    def picture(self, settled: Float32, trial: str) -> NDArray[np.uint8]:
        """Picture of committed tokens; see `Pipeline.picture`."""
        return self._tiny.picture(settled, trial)
