"""Films on the page of a report: match over time, and the measured brain beside the predicted one."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from calibration.report.films import Compared, ShownFilm

Float64 = NDArray[np.float64]
_WIDTH, _HEIGHT, _LEFT = 800.0, 200.0, 40.0
_COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d")
_INCHES = (6.4, 2.2)


def films_html(films: Sequence[ShownFilm]) -> str:
    """Draw the films of a session; say so where there are none."""
    return "".join(_film(one) for one in films) or "<p>None in this session.</p>"


def _film(one: ShownFilm) -> str:
    told = one.told()
    head = f"<h3>{escape(told['film'])}, run {told['run']}</h3>"
    known = [z for z in told["z"] if z is not None]
    if not known:
        return f"{head}<p>No volume of it has a match.</p>"
    claimed = f"evidence that it was followed {told['claim']:.3g}" + (
        ", at 20 it may be claimed" * (told["claim"] < 20)
    )
    asked = f"; the protocol's rule asked to {escape(told['asked'])} it" * bool(told["asked"])
    said = f"<p>Mean z {float(np.mean(known)):.2f} over {len(known)} volumes; {claimed}{asked}.</p>"
    return head + said + _over_time(told) + _brains(one, told)


def _over_time(told: dict[str, Any]) -> str:
    """Draw z of every volume, of all parcels and of each network; gaps where there is none."""
    lines = {"all": told["z"], **told["networks"]}
    values = [z for line in lines.values() for z in line if z is not None]
    low, high = min(0.0, *values), max(1.0, *values)
    last = max(told["volumes"][-1], 1)

    def at(volume: int, z: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 10) * volume / last
        return f"{x:.1f},{10 + (_HEIGHT - 30) * (high - z) / (high - low):.1f}"

    drawn = []
    for place, (name, line) in enumerate(lines.items()):
        colour, width = ("#1c2430", 2.5) if place == 0 else (_COLOURS[(place - 1) % len(_COLOURS)], 1)
        for stretch in _stretches(told["volumes"], line):
            points = " ".join(at(volume, z) for volume, z in stretch)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        drawn.append(f'<text x="{_LEFT + 90 * place:.0f}" y="{_HEIGHT:.0f}" fill="{colour}">{escape(name)}</text>')
    zero = at(0, 0.0).partition(",")[2]
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT + 6:.0f}" role="img" aria-label="stimulus match over time" '
        f'font-size="11" fill="#5b6775"><line x1="{_LEFT}" x2="{_WIDTH}" y1="{zero}" y2="{zero}" stroke="#8a95a3" '
        f'stroke-dasharray="6 5"/><text x="0" y="14">{high:.1f}</text><text x="0" y="{zero}">0</text>'
        f"{''.join(drawn)}</svg>"
    )


def _stretches(volumes: Sequence[int], line: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Cut a line where volumes have no value."""
    found: list[list[tuple[int, float]]] = [[]]
    for volume, z in zip(volumes, line, strict=True):
        if z is not None:
            found[-1].append((volume, z))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]


def _brains(one: ShownFilm, told: dict[str, Any]) -> str:
    compared = one.compared
    if compared is None:
        return f"<p>The measured brain is not shown beside the predicted one: {escape(one.absent)}.</p>"
    length = max(match.window for match in one.recorded.matches)
    known = [(z, volume) for z, volume in zip(told["z"], told["volumes"], strict=True) if z is not None]
    whole = [pair for pair in known if pair[1] >= known[0][1] + length] or known
    rows = []
    for title, (z, last) in (("best", max(whole)), ("lowest", min(whole))):
        measured, predicted = compared.window(last, length)
        pictures = (
            _picture(compared, values, what) for values, what in ((measured, "measured"), (predicted, "predicted"))
        )
        rows.append(
            f"<tr><td>{title} window, {length} volumes up to {last}, z {z:.1f}</td>"
            + "".join(f"<td>{picture}</td>" for picture in pictures)
            + "</tr>"
        )
    found = compared.correlations()
    over = _picture(compared, found, "correlation over time")
    return (
        '<style>td img.brain { width: 420px; height: auto; }</style><p class="dim">Parcels in standard deviations over '
        "the showing, in the participant's own space; the outline, where one is drawn, is that of a standard brain.</p>"
        f"<table><tr><th></th><th>measured</th><th>predicted</th></tr>{''.join(rows)}</table>"
        f"<p>Correlation of measured and predicted over time: median {float(np.median(found)):.2f}, best tenth "
        f"{float(np.quantile(found, 0.9)):.2f} or more, of {len(found)} parcels.</p>{over}"
    )


def _picture(compared: Compared, values: Float64, what: str) -> str:
    painted = nib.Nifti1Image(compared.painted(values).astype(np.float32), compared.affine)
    limit = float(np.quantile(np.abs(values), 0.98)) or 1.0
    content = b64encode(_glass(painted, limit) or _flat(painted, limit)).decode()
    return f'<img class="brain" alt="{escape(what)}" src="data:image/png;base64,{content}">'


def _glass(painted: nib.Nifti1Image, limit: float) -> bytes | None:
    """Draw a glass brain; None where nilearn is not installed."""
    try:
        from nilearn.plotting import plot_glass_brain
    except ImportError:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=80)
    plot_glass_brain(
        painted,
        figure=figure,
        display_mode="ortho",
        colorbar=True,
        plot_abs=False,
        symmetric_cbar=True,
        vmax=limit,
        cmap="RdBu_r",
        threshold=None,
    )
    return _png(figure)


def _flat(painted: nib.Nifti1Image, limit: float) -> bytes:
    """Draw the strongest value along each axis, one picture beside the other; right is where the right side is."""
    from matplotlib.figure import Figure

    upright = nib.as_closest_canonical(painted)
    values, sides = np.asarray(upright.dataobj, np.float64), upright.header.get_zooms()
    figure = Figure(figsize=_INCHES, dpi=80, layout="constrained")
    for place, (plot, name) in enumerate(
        zip(figure.subplots(1, 3), ("from the side", "from behind", "from above"), strict=True)
    ):
        across, up = (side for axis, side in enumerate(sides) if axis != place)
        shown = strongest(values, place).T
        plot.imshow(shown, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, aspect=float(up / across))
        plot.set_title(name, fontsize=8)
        plot.set_axis_off()
    return _png(figure)


def strongest(painted: Float64, axis: int) -> Float64:
    """Return the value that is farthest from 0 along an axis of a volume."""
    places = np.expand_dims(np.abs(painted).argmax(axis), axis)
    return np.asarray(np.take_along_axis(painted, places, axis).squeeze(axis))


def _png(figure: Any) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
