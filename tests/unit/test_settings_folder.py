"""Where relative paths of a recorded session's settings lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdecode.session.recording import settings_folder


@pytest.mark.parametrize(
    ("told", "session", "root"),
    [
        ({}, "lab/sessions/sub-01_ses-01", "lab"),  # the default, as in `rtdecode check --example`
        ({"output": "sessions"}, "lab/sessions/sub-01_ses-01", "lab"),
        ({"output": "data/real/sessions"}, "lab/data/real/sessions/sub-01_ses-01", "lab"),
        ({"output": "."}, "lab/sub-01_ses-01", "lab"),
        ({"output": "sessions"}, "copied/sub-01_ses-01", "copied"),
        ({"output": "/elsewhere"}, "elsewhere/sub-01_ses-01", "elsewhere"),
    ],
)
def test_the_output_folder_is_gone_back(told: dict[str, str], session: str, root: str, tmp_path: Path) -> None:
    assert settings_folder(tmp_path / session, {"session": told}) == (tmp_path / root).resolve()
