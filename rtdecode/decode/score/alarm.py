"""Whether the responses of late hold less of a picture than those of calibration did."""

from __future__ import annotations

from collections import deque

import numpy as np

from rtdecode.decode.score.evidence import Evidence

WINDOW = 20
"""Trials that are looked at together."""
LOWEST_RANK = 0.2
"""Mean rank among calibration's own trials below which something is wrong; .5 is usual.

Without content it is .07 to .16 in simulated participants, whose ordinary sessions come down to .28: trials of a run
are not independent.
"""


class ContentAlarm:
    """Follows the p-values of content of a session's final scores.

    Parameters
    ----------
    evidence : Evidence
        Its calibration trials, judged by models that had not seen them, say what is usual.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._usual = np.array([evidence.p_content(float(content)) for content in evidence.content])
        self._ranks: deque[float] = deque(maxlen=WINDOW)

    @property
    def mean_rank(self) -> float | None:
        """Of the latest trials among those of calibration; None before there are `WINDOW`."""
        return float(np.mean(self._ranks)) if len(self._ranks) == WINDOW else None

    def add(self, p_content: float) -> None:
        """Take the next trial."""
        if len(self._usual):
            self._ranks.append(float(np.mean(self._usual > p_content) + 0.5 * np.mean(self._usual == p_content)))

    def rings(self) -> bool:
        """Whether the latest trials hold too little."""
        return self.mean_rank is not None and self.mean_rank < LOWEST_RANK
