"""The PsychoPy example in PsychoPy itself, on a screen that Xvfb draws with software GL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rtdecode import client as wire
from tests.closing import STEPS, RegulatingSession

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "psychopy_loop" / "feedback.py"
SCREEN = (640, 480)
PYTHON = os.environ.get("RTDECODE_PSYCHOPY", "")


@pytest.fixture
def session() -> Iterator[RegulatingSession]:
    made = RegulatingSession()
    yield made
    made.close()


@pytest.mark.skipif(
    not PYTHON or shutil.which("xvfb-run") is None,
    reason="needs xvfb-run, and RTDECODE_PSYCHOPY: the Python of an environment with PsychoPy",
)
def test_the_screen_shows_the_step_that_was_sent(session: RegulatingSession, tmp_path: Path) -> None:
    shutil.copy(wire.__file__, tmp_path / "client.py")
    command = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN[0]}x{SCREEN[1]}x24", PYTHON]
    command += [str(ROOT / "tests" / "psychopy_screen.py"), str(EXAMPLE), *session.addresses, "4"]
    given = {**os.environ, "PYTHONPATH": str(tmp_path), "LIBGL_ALWAYS_SOFTWARE": "1", "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert [event.kind for event in session.events] == ["run_start", "trial", "trial", "trial", "run_end"]
    assert session.levels == sorted(set(session.levels)), "what is seen raises the next response"
    # Fixation is an eighth of the screen's height; the thermometer, of .8, is at a fifth of that or higher.
    steps = [round(white / 0.8 * STEPS) for white in told["columns"] if white > 0.14]
    assert list(dict.fromkeys(steps)) == session.steps
    assert 0.1 < told["columns"][0] < 0.14, "before the first value there is fixation"
    assert np.median(told["intervals_ms"]) >= 1e3 / 60
