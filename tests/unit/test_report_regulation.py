"""What a report tells of feedback: as displayed, in means with intervals, between runs and sessions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from calibration.report.checklist import NOT_STATED
from calibration.report.page import _Picture
from calibration.report.regulation import feedback_runs
from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.clock import SystemClock
from rtdecode.session.journal import Journal

SHOWN = 40


def visit(folder: Path, gain: float, runs: int = 2) -> list[np.ndarray[Any, Any]]:
    """A session folder with region feedback: ten volumes of baseline, `SHOWN` values a run, then one that is held."""
    (folder / "journal").mkdir(parents=True)
    (folder / "settings.toml").write_text("[feedback]\nscore = 'region'\nregions = ['ffa']\nhalf_life_s = 4.0\n")
    rng = np.random.default_rng(round(10 * gain))
    journal = Journal(folder / "journal" / "outputs.journal", SystemClock())
    told = []
    for run in range(1, runs + 1):
        values = gain + 0.2 * rng.standard_normal(SHOWN)
        told.append(values)
        sent = [wire.Feedback(state="baseline", score="region")] * 10
        sent += [wire.Feedback(state="shown", value=float(v), level=float(np.clip((v + 1) / 2, 0, 1))) for v in values]
        sent += [wire.Feedback(state="held", value=9.0, level=1.0, invalid="the head moved")]
        for volume, message in enumerate(sent):
            topic, payload = wire.pack(replace(message, run=run, volume=volume))
            journal.append("output", topic=topic.decode(), payload=payload)
    journal.close()
    return told


def test_means_are_of_what_was_shown_with_an_interval_over_blocks(tmp_path: Path) -> None:
    values = visit(tmp_path / "visit", 0.5)
    runs = feedback_runs(tmp_path / "visit")
    assert [(run.run, run.count("baseline"), run.count("shown"), run.count("held")) for run in runs] == [
        (1, 10, SHOWN, 1),
        (2, 10, SHOWN, 1),
    ]
    for run, right in zip(runs, values, strict=True):
        mean = run.mean()
        assert mean is not None
        blocks = right.reshape(5, -1).mean(1)
        expected = stats.ttest_1samp(blocks, 0).confidence_interval(0.95)
        assert mean[0] == pytest.approx(right.mean())
        assert mean[1] == pytest.approx((expected.low, expected.high))


def test_a_run_with_few_values_has_no_mean(tmp_path: Path) -> None:
    visit(tmp_path / "visit", 0.5, runs=1)
    (run,) = feedback_runs(tmp_path / "visit")
    short = type(run)(session="s", run=1, states=run.states[:19], values=run.values[:19], levels=run.levels[:19])
    assert short.mean() is None


def test_a_session_with_feedback_alone_has_a_report_beside_its_earlier_ones(tmp_path: Path) -> None:
    visit(tmp_path / "first", 0.1)
    visit(tmp_path / "second", 0.6)
    assert main(["report", str(tmp_path / "second"), "--earlier", str(tmp_path / "first")]) == 0
    text = (tmp_path / "second" / "report" / "report.html").read_text()
    content = msgspec.json.decode((tmp_path / "second" / "report" / "report.json").read_bytes())
    assert [(run["session"], run["run"]) for run in content["feedback"]] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2),
    ]  # fmt: skip
    assert text.count("<circle cx=") == 4 * SHOWN + 4  # as displayed, and a mean for each run
    said = {entry["number"]: entry["says"] for entry in content["CRED-nf"]}
    assert "score region, regions ['ffa'], half life 4.0" in said["4b"]
    assert "204 values of feedback (40 baseline, 160 shown, 4 held)" in said["4d"]
    assert said["5a"].count("mean value shown") == 4
    assert said["5b"].endswith("between sessions")
    assert said["4a"] == NOT_STATED  # no decoder here
    assert all(said.values())
    assert len(said) == 24


def test_a_session_without_either_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.toml").write_text("[decode]\npack = 'tiny'\n")
    assert main(["report", str(tmp_path)]) != 0
    assert "expected a calibration of its own (bundle)" in capsys.readouterr().err


def test_pictures_are_in_the_page_small(tmp_path: Path) -> None:
    Image.fromarray(np.full((512, 512, 3), 200, np.uint8)).save(tmp_path / "picture.webp", lossless=True)
    html = _Picture(tmp_path / "picture.webp").html()
    assert html.startswith('<img alt="" src="data:image/jpeg;base64,')
    assert len(html) < 5000
    assert _Picture(tmp_path / "n/a").html() == "not kept"
