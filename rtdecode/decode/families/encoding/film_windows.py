"""Where in a film the windows of MIRAGE (encoding) lie, and which frames, volumes and words belong to them.

Time 0 is the start of the film. A window covers 149 s of it, 298 frames, and 100 volumes, which begin 4.47 s later:
that delay stands for the response, whose shape the network has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

FRAME_HZ = 2.0
"""Frames of features a second."""
T_R_S = 1.49
"""Repetition time of what the published network predicts, seconds."""
DELAY_S = 4.47
"""How much later than its stimulus a volume is, seconds."""
TEMPERATURE = 0.3
"""Of the weights of an ensemble, in correlation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a film.

    Attributes
    ----------
    start_s : float
        Of its frames, seconds of the film; below 0 where it begins before the film.
    frames : range
        Numbers of its frames; those outside of the film are zero.
    volumes : range
        Numbers of its volumes that are kept.
    """

    start_s: float
    frames: range
    volumes: range


def count_volumes(duration_s: float) -> int:
    """How many volumes of a film are predicted."""
    return round(duration_s / T_R_S)


def windows(duration_s: float, *, frames: int = 298, volumes: int = 100) -> list[Window]:
    """List the windows of a film, which do not overlap.

    Parameters
    ----------
    duration_s : float
        Of the film, seconds.
    frames, volumes : int
        Of a window.
    """
    total = count_volumes(duration_s)
    found = []
    for first in range(0, total, volumes):
        start_s = first * T_R_S - DELAY_S
        frame = round(start_s * FRAME_HZ)
        kept = range(first, min(first + volumes, total))
        found.append(Window(start_s=start_s, frames=range(frame, frame + frames), volumes=kept))
    return found


def word_frames(onset_s: float, duration_s: float, n_frames: int) -> range | None:
    """Frames that a word's features are added to: one at least; None where it begins after the last."""
    first = round(onset_s * FRAME_HZ)
    if first >= n_frames:
        return None
    return range(first, min(first + max(1, round(duration_s * FRAME_HZ)), n_frames))


def ensemble_weights(scores: Sequence[Sequence[float]] | Float64) -> Float64:
    """How much each member counts for each parcel.

    Parameters
    ----------
    scores : array of shape (members, parcels)
        Held-out correlation of each member; nan where there is none.

    Returns
    -------
    array of shape (members, parcels), float64
        They sum to 1; equal where no member has a score, 0 for one without.
    """
    known = np.asarray(scores, np.float64)
    raised = np.where(np.isnan(known), -np.inf, known / TEMPERATURE)
    best = raised.max(0)
    grown = np.exp(raised - np.where(np.isfinite(best), best, 0.0))
    total = grown.sum(0)
    return np.asarray(np.where(total > 0, grown / np.where(total > 0, total, 1.0), 1.0 / len(known)))
