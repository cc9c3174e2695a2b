"""The design of a protocol as a picture: one line a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rtdecode.protocol_file import Protocol
from rtdecode.protocols.design import LaidOut

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")  # Okabe and Ito


def draw(protocol: Protocol, runs: Sequence[LaidOut], path: Path) -> None:
    """Draw every run of a protocol; the name of the file tells the format (PNG, SVG, PDF).

    Rows are as long as they last; those with feedback stand out, rest is empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    named = dict.fromkeys(row.condition for run in runs for row in run.rows if row.trial is not None)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(named)}
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    for place, run in enumerate(runs):
        end_s = run.volumes * protocol.t_r_s
        axes.broken_barh([(0, end_s)], (place - 0.4, 0.8), facecolors="#f2f2f2")
        for row in run.rows:
            if row.condition in colours:
                height = 0.8 if row.feedback != "none" else 0.5
                axes.broken_barh(
                    [(row.onset_s, row.duration_s)], (place - 0.4, height), facecolors=colours[row.condition]
                )
    axes.set_yticks(range(len(runs)), [f"{run.run} {run.plan.name} ({run.plan.purpose})" for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the start of volume 0")
    axes.set_title(f"{protocol.name} {protocol.version}  [{protocol.hash}]", loc="left")
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if patches:
        axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)
