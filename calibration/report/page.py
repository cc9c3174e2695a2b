"""A session's report: one page that needs nothing else, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from calibration.report.checklist import cred_nf
from calibration.report.checks import Check
from calibration.report.session_trials import RecordedCalibration
from rtdecode import version
from rtdecode.derivatives import decoded_rows
from rtdecode.packs.participant_bundle import CurvePoint

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dde2e8; vertical-align: top; }
th:first-child, td:first-child, .text td { text-align: left; } h2 { margin-top: 2rem; } .dim { color: #5b6775; }
code { font-size: 13px; overflow-wrap: anywhere; } svg { width: 100%; height: 220px; }
"""


def write(session: RecordedCalibration, checks: list[Check], out: Path) -> Path:
    """Write ``report.html`` and ``report.json``.

    Parameters
    ----------
    session : RecordedCalibration
    checks : list of Check
    out : Path
        Folder; made if absent.

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = gathered(session, checks)
    (out / "report.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(content, checks), encoding="utf-8")
    return page


def gathered(session: RecordedCalibration, checks: list[Check]) -> dict[str, Any]:
    """Everything that the page shows."""
    provenance = msgspec.to_builtins(session.bundle.provenance)
    quality = sorted(session.folder.glob("sub-*/ses-*/func/*_desc-quality_summary.json"))
    curve = msgspec.json.decode((session.bundle.folder / "learning_curve.json").read_bytes(), type=list[CurvePoint])
    rows = list(decoded_rows(session.folder))
    entries = cred_nf(session, rows)
    return {
        "session": session.folder.name,
        "versions": {"rtdecode": version.__version__, "pack": session.pack.name, "pack identity": session.pack.identity,
                     "bundle identity": session.bundle.identity},
        "calibration": {k: v for k, v in provenance.items() if k not in ("stimuli",)},
        "curve": [msgspec.to_builtins(point) for point in curve],
        "quality": [json.loads(path.read_text(encoding="utf-8")) for path in quality],
        "trials": rows,
        "checks": [asdict(check) for check in checks],
        "CRED-nf": [asdict(entry) for entry in entries],
    }  # fmt: skip


def _page(content: dict[str, Any], checks: list[Check]) -> str:
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
         "yes" if row["supported"] == "1" else f"no: {row['refused']}"]
        for row in content["trials"]
    ]  # fmt: skip
    entries = [[entry["number"], entry["asks"], entry["says"]] for entry in content["CRED-nf"]]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<style>{_STYLE}</style>
<h1>{escape(title)}</h1>
<h2>What was run</h2>{_table(["", ""], [[name, f"{value}"] for name, value in told.items()], "text")}
<h2>Calibration</h2>{_curve(content["curve"])}
<h2>Checks</h2>{"".join(_check(check) for check in checks)}
<h2>Quality</h2>{_table(["run", "volumes", "censored", "mean FD, mm", "median tSNR", "trials"], quality)}
<h2>Trials</h2>{_table(["trial", "shown", "category", "named", "rank", "evidence", "supported"], trials, "text")}
<h2>CRED-nf</h2>
<p class="dim">Ros et al., Brain 143, 2020. What the software does not know is for the authors to state.</p>
{_table(["entry", "asks for", "this session"], entries, "text")}</html>
"""


def _table(head: list[str], rows: list[list[Any]], kind: str = "") -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(_said(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(one)}</th>" for one in head)
    return f'<table class="{kind}"><tr>{heads}</tr>{cells}</table>'


def _said(value: Any) -> str:
    if value is None:
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
