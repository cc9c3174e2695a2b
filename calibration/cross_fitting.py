"""Tokens of calibration trials as adapters decode them that never met them: what a network is trained and judged on.

A network that is trained on what an adapter says of its own trials learns that adapter's memory of them. So each trial
is decoded by an adapter that was fitted without its fold. To judge the network, some trials are set apart before
anything is fitted: neither adapter nor network, nor the inputs that the network was trained on, have met them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration import regression
from calibration.adapter_fit import FittedAdapter, Trials, fit_adapter
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

APART = 4
"""Sets of trials that are set apart in turn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crossed:
    """Trials that a network learns from, and those that were set apart.

    Attributes
    ----------
    rows : ndarray of shape (n,), int64
        Trials to learn from.
    decoded : ndarray of shape (n, m), float32
        Flattened tokens of each, by an adapter that was fitted without its fold and without those set apart.
    adapter : Adapter
        Of all these trials.
    apart : ndarray of shape (q,), int64
        Trials that nothing here was learned from.
    apart_decoded : ndarray of shape (q, m), float32
        Flattened tokens of these, by the adapter of all others.
    """

    rows: Ints
    decoded: Float32
    adapter: Adapter
    apart: Ints
    apart_decoded: Float32


def whole(trials: Trials, candidates: Candidates) -> Crossed:
    """Decode all trials; none is set apart.

    Raises
    ------
    CalibrationError
        As `fit_adapter`.
    """
    return _crossed(trials, candidates, np.zeros(0, np.int64), trials.parts)


def set_apart(trials: Trials, candidates: Candidates) -> list[Crossed]:
    """Set trials apart in turn, each once; folds stay together.

    Raises
    ------
    CalibrationError
        There are too few groups of trials.
    """
    sets = [np.concatenate(trials.parts[first::APART]) for first in range(min(APART, len(trials.parts)))]
    found = []
    for apart in sets:
        left = np.setdiff1d(np.arange(len(trials.betas)), apart)
        parts = regression.folds(trials.together[left])
        if len(parts) < 2:
            raise CalibrationError(
                f"expected at least 3 groups of trials to set apart and to hold out in turn, got {len(trials.parts)}"
            )
        found.append(_crossed(trials, candidates, np.sort(apart), [left[part] for part in parts]))
    return found


def _crossed(trials: Trials, candidates: Candidates, apart: Ints, parts: list[Ints]) -> Crossed:
    left = np.setdiff1d(np.arange(len(trials.betas)), apart)
    own = replace(
        trials,
        betas=trials.betas[left],
        run=trials.run[left],
        shown=trials.shown[left],
        together=trials.together[left],
        parts=[np.searchsorted(left, part) for part in parts],
    )
    fitted = fit_adapter(own, candidates)
    return Crossed(
        rows=left,
        decoded=fitted.decoded(),
        adapter=fitted.adapter,
        apart=apart,
        apart_decoded=_decoded(fitted, trials.betas[apart]),
    )


def _decoded(fitted: FittedAdapter, betas: Float32) -> Float32:
    adapter = fitted.adapter
    chosen = [adapter.predict(adapter.chosen(beta)) for beta in betas]
    return fitted.tokens(np.array(chosen).reshape(len(betas), len(adapter.basis)))
