"""What the heads of a tiny imagery pack predict of a picture: its kind, and how it differs from its kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rtdecode.decode.score.candidates import Candidates


def head_candidates(whole: Candidates) -> Candidates:
    """Reduce candidates of a tiny pack to what is high-level.

    Kinds are few, and each has many pictures in a calibration: of weak responses they are learned best. So they are
    predicted by a head of their own, with a share of the variance of its own.

    Parameters
    ----------
    whole : Candidates
        With all tokens.

    Returns
    -------
    Candidates
        Of one row: the semantic tokens of its category's prototype, then what its own are more than these.
    """
    semantic = whole.groups[0]
    width = semantic.stop - semantic.start
    prototypes = whole.prototypes.reshape(len(whole.prototypes), -1)[:, semantic]
    kind = prototypes[whole.category]
    own = whole.tokens.reshape(len(whole.tokens), -1)[:, semantic] - kind
    return replace(
        whole,
        tokens=np.concatenate([kind, own], axis=1)[:, None],
        prototypes=np.concatenate([prototypes, np.zeros_like(prototypes)], axis=1)[:, None],
        groups=(slice(0, width), slice(width, 2 * width)),
        group_names=("kind", "own"),
    )
