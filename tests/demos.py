"""A demo as a process, and what its summary says where nothing was lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_demo(out: Path, *arguments: str, program: tuple[str, ...] = ("-m", "rtdecode")) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "demo", "--no-browser", "--speed", "max", "--out", str(out / "demo")]
    return subprocess.Popen(
        [*command, "--json", str(out / "demo.json"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )


def finished(demo: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    printed, _ = demo.communicate()
    assert demo.returncode == 0, printed
    shutil.rmtree(out / "demo")
    result: dict[str, Any] = json.loads((out / "demo.json").read_text())
    return result


OF_SLOW_MACHINES = ("no volume since", "has been at one item", "no sign of life")
"""What the watch tells of while other work takes the machine: true, and nothing is lost by it."""


def check_whole(summary: dict[str, Any], decoded: int, volumes: int) -> None:
    """Nothing was lost and every decoded trial has its figures."""
    assert summary["volumes"] == {"expected": volumes, "received": volumes, "skipped": 0}
    assert [fault for fault in summary["faults"] if not any(words in fault for words in OF_SLOW_MACHINES)] == []
    assert len(summary["trials"]) == summary["decoded_trials"] == decoded
    for trial in summary["trials"]:
        assert trial["caption"]
        assert trial["revisions"] >= 1
        assert 0 <= trial["evidence"] <= 1
        assert {"embed", "caption", "reconstruct", "total"} <= trial["latency_ms"].keys()
    low, high = summary["accuracy_interval"]
    assert low <= summary["accuracy_final"] <= high


def check_identified(summary: dict[str, Any]) -> None:
    """Every trial of a simulated visit was decoded, and better than chance."""
    check_whole(summary, decoded=80, volumes=928)
    assert summary["calibration_trials"] == 200
    found = summary["identification"]
    assert found["permutation_p"] < 0.001
    assert found["percentile"] > 0.5
    assert 0 < found["fraction_of_oracle"] <= 1.2
    assert summary["permutation_p"] < 0.001
    supported = [t for t in summary["trials"] if t["supported"] and "category" not in t["unknown"]]
    right = sum(t["predicted"] == t["true"] for t in supported)
    assert (summary["supported"]["trials"], summary["supported"]["right"]) == (len(supported), right)
    assert summary["supported"]["interval"][0] > summary["chance"]
