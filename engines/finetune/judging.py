"""What a fine-tuned network is worth, from trials that it never met."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.finetune.training import Choice, Judged, Tuning, choose
from rtdecode.packs.participant_bundle import NetworkFigures
from rtdecode.statistics import bootstrap_interval

RESAMPLES = 2000


def network_figures(judged: Sequence[Judged], tuning: Tuning, kept: Choice, rank: int | None) -> NetworkFigures:
    """Summarise; each set of trials is judged at the step that the other sets choose.

    So no trial is judged by a network that was trained on it, nor at a step that it had a say in.

    Parameters
    ----------
    judged : sequence of Judged
    tuning : Tuning
    kept : Choice
        Of all sets together.
    rank : int or None
    """
    by_ridge, by_network, errors = [], [], []
    for place, one in enumerate(judged):
        step = choose([other for i, other in enumerate(judged) if i != place]).step if len(judged) > 1 else 0
        by_ridge.append(one.ranks(0))
        by_network.append(one.ranks(step))
        errors.append(np.stack([one.errors[0], one.errors[step]]))
    ridge, network, error = np.concatenate(by_ridge), np.concatenate(by_network), np.concatenate(errors, axis=1)
    share = (error[0] - error[1]) / error[0].mean()
    rng = np.random.default_rng(tuning.seed)
    return NetworkFigures(
        rank=rank or 0,
        steps=kept.step * tuning.every,
        seed=tuning.seed,
        trials=len(ridge),
        sets=len(judged),
        percentile_ridge=float(ridge.mean()),
        percentile=float(network.mean()),
        percentile_gain=bootstrap_interval(network - ridge, rng, resamples=RESAMPLES),
        error_saved=float(share.mean()),
        error_saved_interval=bootstrap_interval(share, rng, resamples=RESAMPLES),
    )
