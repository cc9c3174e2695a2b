"""How alike the stimuli of a calibration are, as far as they were shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.candidates import Candidates


class Likeness:
    """Inner products of the tokens of the stimuli shown, which grow as stimuli are met."""

    def __init__(self, candidates: Candidates) -> None:
        self._tokens = candidates.tokens
        self._flat = candidates.tokens.reshape(len(candidates.tokens), -1)
        self._groups = candidates.groups
        self._met: dict[int, int] = {}
        self.products = np.empty((len(self._groups), 0, 0))
        """Of each token group, (g, m, m)."""

    def meet(self, stimulus: int) -> None:
        """Add a stimulus, unless it is known."""
        if stimulus in self._met:
            return
        self._met[stimulus] = n = len(self._met)
        self.products = np.pad(self.products, ((0, 0), (0, 1), (0, 1)))
        for products, group in zip(self.products, self._groups, strict=True):
            own = self._flat[stimulus, group]
            row = [float(np.dot(self._flat[other, group], own)) for other in self._met]
            products[n] = products[:, n] = row

    def places(self, stimuli: Sequence[int]) -> NDArray[np.int64]:
        """Rows of stimuli in `products`."""
        return np.array([self._met[stimulus] for stimulus in stimuli], dtype=np.int64)

    def tokens(self, stimuli: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tokens (n, t, d) of stimuli (n,)."""
        return self._tokens[stimuli]
