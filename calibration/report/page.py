"""A session's report: one page that needs nothing else, and the same as JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from calibration.report.checklist import cred_nf
from calibration.report.checks import Check
from calibration.report.feedback_plots import feedback_html
from calibration.report.film_plots import films_html
from calibration.report.films import ShownFilm, shown_films
from calibration.report.planned import planned
from calibration.report.regulation import feedback_rule, feedback_runs
from calibration.session_trials import RecordedCalibration
from rtdecode import version
from rtdecode.derivatives import decoded_rows
from rtdecode.derivatives.columns import MISSING
from rtdecode.packs.participant_bundle import CurvePoint

_SMALL_PX = 128
_TRIALS = ["trial", "shown", "category", "named", "rank", "evidence", "supported", "picture"]
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dde2e8; vertical-align: top; }
th:first-child, td:first-child, .text td { text-align: left; } h2 { margin-top: 2rem; } .dim { color: #5b6775; }
code { font-size: 13px; overflow-wrap: anywhere; } svg { width: 100%; height: 220px; }
td img { width: 96px; height: 96px; object-fit: cover; display: block; }
"""


def write(
    folder: Path,
    session: RecordedCalibration | None,
    checks: list[Check],
    out: Path,
    earlier: Sequence[Path] = (),
) -> Path:
    """Write ``report.html`` and ``report.json``.

    Parameters
    ----------
    folder : Path
        Session folder.
    session : RecordedCalibration or None
        Its calibration; None where it has none.
    checks : list of Check
    out : Path
        Folder; made if absent.
    earlier : sequence of Path
        Session folders of the same participant, whose feedback is drawn beside this one's.

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    films = shown_films(folder)
    content = {**gathered(folder, session, checks, earlier), "films": [film.told() for film in films]}
    (out / "report.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(content, checks, folder, films), encoding="utf-8")
    return page


def gathered(
    folder: Path, session: RecordedCalibration | None, checks: list[Check], earlier: Sequence[Path]
) -> dict[str, Any]:
    """Everything that the page shows, but for pictures and films."""
    quality = sorted(folder.glob("sub-*/ses-*/func/*_desc-quality_summary.json"))
    rows = list(decoded_rows(folder))
    runs = [run for one in (*earlier, folder) for run in feedback_runs(one)]
    entries = cred_nf(session, rows, runs, feedback_rule(folder), planned(folder))
    return {
        "session": folder.name,
        "versions": {"rtdecode": version.__version__, **({} if session is None else _identities(session))},
        "calibration": {} if session is None else _provenance(session),
        "curve": [] if session is None else _points(session),
        "feedback": [{**asdict(run), "mean": run.mean()} for run in runs],
        "quality": [json.loads(path.read_text(encoding="utf-8")) for path in quality],
        "trials": rows,
        "checks": [asdict(check) for check in checks],
        "CRED-nf": [asdict(entry) for entry in entries],
    }  # fmt: skip


def _identities(session: RecordedCalibration) -> dict[str, str]:
    return {
        "pack": session.pack.name,
        "pack identity": session.pack.identity,
        "bundle identity": session.bundle.identity,
    }


def _support(row: dict[str, str]) -> str:
    if row["supported"] != "1":
        return f"no: {row['refused']}"
    unknown = row.get("unknown", MISSING)  # tables of earlier versions do not tell
    return "yes" if unknown == MISSING else f"yes, but not its {unknown.replace(',', ' and ')}"


def _provenance(session: RecordedCalibration) -> dict[str, Any]:
    return {k: v for k, v in msgspec.to_builtins(session.bundle.provenance).items() if k != "stimuli"}


def _points(session: RecordedCalibration) -> list[dict[str, Any]]:
    path = session.bundle.folder / "learning_curve.json"
    return [msgspec.to_builtins(point) for point in msgspec.json.decode(path.read_bytes(), type=list[CurvePoint])]


def _page(content: dict[str, Any], checks: list[Check], folder: Path, films: Sequence[ShownFilm]) -> str:
    title = f"Report of {content['session']}"
    told = {
        **content["versions"],
        **{k: v for k, v in content["calibration"].items() if not isinstance(v, list | dict)},
    }
    quality = [
        [str(run.get("Source", "")), run.get("Volumes"), run.get("VolumesCensored"),
         run.get("MeanFramewiseDisplacement_mm"), run.get("MedianTSNR"), run.get("Trials")]
        for run in content["quality"]
    ]  # fmt: skip
    trials = [
        [row["trial"], row["stim_id"], row["trial_type"], row["predicted"], row["rank"], row["evidence"],
         _support(row), _Picture(folder / row["recon"])]
        for row in content["trials"]
    ]  # fmt: skip
    entries = [[entry["number"], entry["asks"], entry["says"]] for entry in content["CRED-nf"]]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<style>{_STYLE}</style>
<h1>{escape(title)}</h1>
<h2>What was run</h2>{_table(["", ""], [[name, f"{value}"] for name, value in told.items()], "text")}
<h2>Calibration</h2>{_curve(content["curve"]) if content["calibration"] else "<p>None in this session.</p>"}
<h2>Checks</h2>{"".join(_check(check) for check in checks) or "<p>They want a calibration.</p>"}
<h2>Feedback</h2>{feedback_html(content["feedback"])}
<h2>Films</h2>{films_html(films)}
<h2>Quality</h2>{_table(["run", "volumes", "censored", "mean FD, mm", "median tSNR", "trials"], quality)}
<h2>Trials</h2>{_table(_TRIALS, trials, "text")}
<h2>CRED-nf</h2>
<p class="dim">Ros et al., Brain 143, 2020. What the software does not know is for the authors to state.</p>
{_table(["entry", "asks for", "this session"], entries, "text")}</html>
"""


def _table(head: list[str], rows: list[list[Any]], kind: str = "") -> str:
    cells = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(one)}</th>" for one in head)
    return f'<table class="{kind}"><tr>{heads}</tr>{cells}</table>'


def _cell(cell: Any) -> str:
    return cell.html() if isinstance(cell, _Picture) else escape(_said(cell))


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded picture, made small and put into the page itself."""

    path: Path

    def html(self) -> str:
        if not self.path.is_file():
            return "not kept"
        buffer = BytesIO()
        with Image.open(self.path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SMALL_PX, _SMALL_PX))
            small.save(buffer, "jpeg", quality=80)
        return f'<img alt="" src="data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}">'


def _said(value: Any) -> str:
    if value is None or value == "n/a":
        return "not known"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check(check: Check) -> str:
    head = f"<h3>{escape(check.name)}</h3><p class='dim'>{escape(check.question)}</p>"
    if check.not_taken:
        return f"{head}<p>Not taken: {escape(check.not_taken)}.</p>"
    rows = [
        [name, f"{one.value:.3f}", f"{one.interval[0]:.3f} to {one.interval[1]:.3f}",
         "" if one.chance is None else f"{one.chance:.3f}", one.n]
        for name, one in check.figures.items()
    ]  # fmt: skip
    return head + _table(["figure", "value", "95 % interval", "chance", "trials"], rows)


def _curve(points: list[dict[str, Any]]) -> str:
    """Draw the learning curve."""
    known = [(p["trials"], p["percentile"], *p["interval"]) for p in points if p["percentile"] is not None]
    if not known:
        return "<p>Too few trials for a learning curve.</p>"
    most = max(trials for trials, *_ in known)

    def at(trials: float, share: float) -> str:
        return f"{40 + 740 * trials / most:.1f},{200 - 190 * share:.1f}"

    band = " ".join([at(t, low) for t, _, low, _ in known] + [at(t, high) for t, _, _, high in reversed(known)])
    line = " ".join(at(t, share) for t, share, *_ in known)
    last = known[-1]
    return f"""<svg viewBox="0 0 800 220" role="img" aria-label="learning curve" font-size="12" fill="#5b6775">
<polygon points="{band}" fill="#0a8f6a" opacity=".2"/>
<polyline points="{line}" fill="none" stroke="#0a8f6a" stroke-width="2"/>
<line x1="40" x2="780" y1="105" y2="105" stroke="#8a95a3" stroke-dasharray="6 5"/><text x="0" y="109">50 %</text>
<text x="0" y="14">100 %</text><text x="690" y="216">{most} trials</text></svg>
<p>Held-out percentile rank {last[1]:.3f} [{last[2]:.3f}, {last[3]:.3f}] after {last[0]} trials;
chance .5, dashed.</p>"""
