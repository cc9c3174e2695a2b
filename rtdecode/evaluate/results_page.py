"""The figures and pictures of a session on one page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdecode.evaluate.evaluation import Figure, Unavailable
from rtdecode.evaluate.recorded_session import Pairs

_PX = 128
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222; }
table { border-collapse: collapse; } th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
figure { margin: 0; width: 264px; } figure img { width: 128px; height: 128px; image-rendering: pixelated; }
figcaption { font-size: 13px; color: #555; } .missing { color: #777; }
"""


def write(pairs: Pairs, figures: Sequence[Figure], missing: Sequence[Unavailable], out: Path, title: str) -> Path:
    """Write ``evaluation.html`` and ``evaluation.json``.

    Parameters
    ----------
    pairs : Pairs
    figures : sequence of Figure
    missing : sequence of Unavailable
    out : Path
        Folder; made if absent.
    title : str

    Returns
    -------
    Path
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "figures": [asdict(figure) for figure in figures],
        "unavailable": [asdict(one) for one in missing],
        "trials": len(pairs.trials),
        "left_out": list(pairs.left_out),
    }
    (out / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = "".join(
        f"<tr><td>{escape(f.name)}{' (lower is better)' if f.lower_is_better else ''}</td><td>{f.value:.3f}</td>"
        f"<td>{f.interval[0]:.3f} to {f.interval[1]:.3f}</td>"
        f"<td>{'' if f.chance is None else f'{f.chance:.3f}'}</td><td>{f.n}</td></tr>"
        for f in figures
    )
    absent = "".join(f"<li>{escape(one.name)}: {escape(one.reason)}</li>" for one in missing)
    shown = "".join(
        f'<figure><img src="{_encoded(true)}" alt="shown"> <img src="{_encoded(made)}" alt="decoded">'
        f"<figcaption>{escape(trial)}: {escape(stimulus)}<br>{escape(caption)}</figcaption></figure>"
        for trial, stimulus, caption, true, made in zip(
            pairs.trials, pairs.stimuli, pairs.captions, pairs.true, pairs.made, strict=True
        )
    )
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<style>{_STYLE}</style><h1>{escape(title)}</h1>
<table><tr><th>measure</th><th>mean</th><th>95 % interval</th><th>chance</th><th>trials</th></tr>{rows}</table>
<h2>Not taken</h2><ul class="missing">{absent}</ul>
<p>{len(pairs.left_out)} trials left out.</p>
<h2>Shown and decoded</h2><div class="pairs">{shown}</div></html>
"""
    target = out / "evaluation.html"
    target.write_text(page, encoding="utf-8")
    return target


def _encoded(picture: NDArray[np.float32]) -> str:
    values = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = BytesIO()
    Image.fromarray(values).resize((_PX, _PX)).save(buffer, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
