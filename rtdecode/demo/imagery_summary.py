"""What a demo of imagery says at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from rtdecode.decode.decoder import Decoder
from rtdecode.demo.collector import SeenTrial
from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.imagery.read_out import CalibrationScale, Identified, ImageryEpoch, ImageryReadOut, read_all
from rtdecode.statistics import wilson_interval


def imagined(
    protocol: ImageryProtocol,
    trials: Sequence[SeenTrial],
    betas: Mapping[str, NDArray[np.float32]],
    decoder: Decoder,
    scale: CalibrationScale,
) -> dict[str, Any]:
    """Name what was imagined among the cued targets, epoch by epoch, as a client does while a session runs.

    Parameters
    ----------
    protocol : ImageryProtocol
    trials : sequence of SeenTrial
        Epochs in their order.
    betas : mapping of str to ndarray
        Final betas.
    decoder : Decoder
        With the participant loaded.
    scale : CalibrationScale

    Returns
    -------
    dict
        ``alone`` and ``averaged``: share of epochs whose target is named right from that epoch, and from the average
        of the target's epochs so far, with intervals; ``last``, the same of each target's last average. Averages of a
        target share epochs: only the interval of ``alone`` is of independent trials.
    """
    readout = ImageryReadOut(protocol, decoder.likelihood, scale)
    epochs = [
        ImageryEpoch(trial=t.trial, target=str(t.score.stimulus), beta=betas[t.trial])
        for t in trials
        if t.trial in betas and t.score is not None
    ]
    said = read_all(readout, epochs)
    last = {one.target: one for one in said}
    return {
        "targets": len(protocol.names),
        "chance": 1 / len(protocol.names),
        "alone": _share([one.alone == one.target for one in said]),
        "averaged": _share([one.predicted == one.target for one in said]),
        "last": _share([one.predicted == one.target for one in last.values()]),
        "repeats": [one.repeats for one in last.values()],
        "epochs": [_epoch(one) for one in said],
    }


def print_imagery(found: Mapping[str, Any], table: Table) -> None:
    """Add the figures to the table of a demo."""
    alone, averaged, last = found["alone"], found["averaged"], found["last"]
    low, high = alone["interval"]
    table.add_row(
        "imagined target named right",
        f"{alone['share']:.1%} of {alone['n']} epochs [{low:.0%} to {high:.0%}], chance {found['chance']:.1%}; "
        f"of running averages {averaged['share']:.1%}",
    )
    table.add_row(
        "after the last repeat",
        f"{round(last['share'] * last['n'])} of {last['n']} targets, averages of {min(found['repeats'], default=0)} to "
        f"{max(found['repeats'], default=0)} epochs",
    )


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    n = len(hits)
    if not n:
        return {"share": 0.0, "interval": [0.0, 1.0], "n": 0}
    return {"share": sum(hits) / n, "interval": list(wilson_interval(sum(hits), n)), "n": n}


def _epoch(said: Identified) -> dict[str, Any]:
    return {
        "trial": said.trial,
        "target": said.target,
        "alone": said.alone,
        "averaged": said.predicted,
        "rank": said.rank,
        "repeats": said.repeats,
        "p_catch": said.p_catch,
    }
