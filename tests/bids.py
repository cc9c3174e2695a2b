"""The BIDS validator, for folders that claim to be datasets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def errors(folder: Path) -> list[str]:
    """Return what the validator calls an error."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("the BIDS validator is not there: pip install bids-validator-deno")
    done = subprocess.run([program, "--json", str(folder)], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["issues"]["issues"]
    return [f"{one['code']} {one.get('location')}" for one in found if one["severity"] == "error"]
