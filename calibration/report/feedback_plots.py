"""Feedback as plots of a page: within runs, and from run to run and session to session."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT = 800.0, 200.0, 60.0
_INK, _LINE, _PALE = "#5b6775", "#1f77b4", "#c9d6e4"


def feedback_html(runs: Sequence[dict[str, Any]]) -> str:
    """Draw runs, as `FeedbackRun` has them and with their ``mean``, and list them; say so where there are none."""
    if not runs:
        return "<p>None in this session.</p>"
    rows = "".join(
        f"<tr><td>{escape(run['session'])}</td><td>{run['run']}</td>"
        + "".join(f"<td>{run['states'].count(state)}</td>" for state in ("baseline", "shown", "held"))
        + f"<td>{_mean(run['mean'])}</td></tr>"
        for run in runs
    )
    heads = "".join(f"<th>{head}</th>" for head in ("session", "run", "baseline", "shown", "held", "mean value shown"))
    within = "".join(
        f"<h3>{escape(run['session'])}, run {run['run']}: level as displayed</h3>{_levels(run)}" for run in runs
    )
    return f"""<p class="dim">Value: the score against its baseline, smoothed, as the settings say. The interval of a
mean is of 95 %, over five blocks of the run.</p><table><tr>{heads}</tr>{rows}</table>
<h3>Between runs and sessions: mean value shown</h3>{_means(runs)}{within}"""


def _mean(mean: tuple[float, tuple[float, float]] | None) -> str:
    if mean is None:
        return "too few"
    value, (low, high) = mean
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _levels(run: dict[str, Any]) -> str:
    """Draw a run's levels from 0 to 1: points where they were new, a line where they were held as well."""
    count = max(2, len(run["levels"]))
    line, points = [], []
    for i, (state, level) in enumerate(zip(run["states"], run["levels"], strict=True)):
        if level is None:
            continue
        x, y = _LEFT + (_WIDTH - _LEFT - 20) * i / (count - 1), 10 + (_HEIGHT - 30) * (1 - level)
        line.append(f"{x:.1f},{y:.1f}")
        if state == "shown":
            points.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_LINE}"/>')
    return _svg(
        "feedback of a run",
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{_PALE}" stroke-width="2"/>{"".join(points)}'
        f'<text x="0" y="16">1</text><text x="0" y="{_HEIGHT - 18:.0f}">0</text>'
        f'<text x="{_WIDTH - 150:.0f}" y="{_HEIGHT - 2:.0f}">{count} volumes or trials</text>',
    )


def _means(runs: Sequence[dict[str, Any]]) -> str:
    known = [(run, *run["mean"]) for run in runs if run["mean"] is not None]
    if not known:
        return "<p>Too few values were shown in any run.</p>"
    low = min([0.0, *(float(interval[0]) for _, _, interval in known)])
    high = max([0.0, *(float(interval[1]) for _, _, interval in known)])
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return 10 + (_HEIGHT - 50) * (1 - (value - low) / span)

    drawn = []
    for i, (run, value, (below, above)) in enumerate(known):
        x = _LEFT + (_WIDTH - _LEFT - 40) * (i + 0.5) / len(known)
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(below):.1f}" y2="{y(above):.1f}" stroke="{_LINE}"/>'
            f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="4" fill="{_LINE}"/>'
            f'<text x="{x:.1f}" y="{_HEIGHT - 12:.0f}" text-anchor="middle">run {run["run"]}</text>'
            f'<text x="{x:.1f}" y="{_HEIGHT:.0f}" text-anchor="middle">{escape(run["session"])}</text>'
        )
    zero = f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{_INK}" stroke-dasharray="6 5"/>'
    return _svg(
        "mean value of each run",
        f'{zero}<text x="0" y="{y(0) + 4:.1f}">0</text><text x="0" y="{y(high) + 4:.1f}">{high:.3g}</text>'
        + "".join(drawn),
    )


def _svg(label: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT + 6:.0f}" role="img" aria-label="{label}" font-size="11" '
        f'fill="{_INK}">{content}</svg>'
    )
