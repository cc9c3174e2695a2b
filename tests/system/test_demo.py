"""The demo as a user runs it, and the page as a person sees it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rtdecode.demo.processes import free_port
from tests.demos import OF_SLOW_MACHINES, check_identified, check_whole, finished, start_demo

pytestmark = pytest.mark.system


def test_the_page_follows_a_whole_demo(tmp_path: Path, browser: Any) -> None:
    from selenium.common.exceptions import WebDriverException

    port = free_port()
    demo = start_demo(tmp_path, "--seed", "3", "--port", str(port))
    seen: set[tuple[str, str, str]] = set()
    opened = False
    while demo.poll() is None:
        time.sleep(0.25)  # the browser shares two cores with the whole demo
        try:
            if not opened:
                browser.get(f"http://127.0.0.1:{port}/")
                opened = browser.title == "rtdecode"
            picture, caption, revision = browser.execute_script(
                "return ['picture', 'caption', 'revision'].map("
                "id => { const n = document.getElementById(id);"
                " return n.tagName === 'IMG' ? (n.naturalWidth ? n.getAttribute('src') : '') : n.textContent; })"
            )
        except WebDriverException:
            continue
        if picture:
            seen.add((picture, caption, revision))
    check_identified(finished(demo, tmp_path))
    pictures, captions, revisions = (set(values) for values in zip(*seen, strict=True))
    assert len(pictures) >= 5
    assert len(captions) >= 5
    assert any("final" in r for r in revisions)
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [c for c in complaints if "ERR_" not in c] == []  # the page outlives its server


def test_a_real_participant_is_replayed(tmp_path: Path, shared: Path) -> None:
    data = shared / "data" / "task-haxby2001-sub001-runs1-6"
    demo = start_demo(tmp_path, "--data", str(data), "--calibrate-runs", "1-4", "--port", "0")
    summary = finished(demo, tmp_path)
    check_whole(summary, decoded=16, volumes=726)
    assert summary["calibration_trials"] == 32
    assert sorted({t["run"] for t in summary["trials"]}) == [5, 6]
    assert sorted(t["true"] for t in summary["trials"]) == sorted(summary["categories"] * 2)
    assert all(t["rank"] is not None for t in summary["trials"])


SMALL_IMAGERY = """
import functools, sys
from rtdecode.__main__ import main
from rtdecode.demo import demo_visits
demo_visits.ImageryPlan = functools.partial(
    demo_visits.ImageryPlan, calibration_runs=2, decoding_runs=1, trials_per_run=16, volumes_per_run=84,
    repeats_per_run=2,
)
sys.exit(main(sys.argv[1:]))
"""
"""A demo short enough for a test: that imagery is decoded above chance is held to by `test_imagery_identified`."""


def test_a_demo_of_imagery_says_of_every_epoch_what_was_named(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--mode", "imagery", "--seed", "1", "--port", "0", program=("-c", SMALL_IMAGERY))
    summary = finished(demo, tmp_path)
    check_whole(summary, decoded=12, volumes=252)  # beside two without a target
    found = summary["imagery"]
    assert (found["targets"], found["chance"]) == (6, 1 / 6)
    said = [trial for trial in summary["trials"] if trial["trial"] >= "r03t012"]  # after the warm-up
    assert [one["trial"] for one in found["epochs"]] == [trial["trial"] for trial in said]
    hits = sum(one["alone"] == one["target"] for one in found["epochs"])
    assert found["alone"]["n"] == len(said) >= 1
    assert found["alone"]["share"] == hits / len(said)
    low, high = found["alone"]["interval"]
    assert low <= found["alone"]["share"] <= high


def test_a_demo_of_films_tells_when_the_eyes_are_closed(tmp_path: Path) -> None:
    summary = finished(start_demo(tmp_path, "--mode", "film", "--port", "0"), tmp_path)
    rows = {row["stretch"]: row for row in summary["stretches"]}
    assert summary["volumes"] == summary["matches"] == 360
    assert rows["second film, followed"]["rank"] > 0.9
    assert rows["eyes closed"]["z"] < rows["second film, followed"]["z"] - 0.5
    assert summary["claims"]["run 1"] >= 20
    assert [fault for fault in summary["faults"] if not any(words in fault for words in OF_SLOW_MACHINES)] == []
