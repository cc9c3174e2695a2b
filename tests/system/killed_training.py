"""A small training of the tiny pack that is killed while it writes a checkpoint.

python -m tests.system.killed_training FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from unittest import mock

from engines.tiny import train
from tests.training_small import small_stage_settings

SEED = 4
KILLED_AT = 8
"""Checkpoint that is written but not yet in its place: the second step of the third stage."""


def run(folder: Path) -> None:
    written = 0

    def replaced(draft: Path, path: Path) -> None:
        nonlocal written
        written += 1
        if written == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(draft, path)

    with mock.patch.multiple(train, **small_stage_settings(train.STAGES)), mock.patch("os.replace", replaced):
        train.train(folder, seed=SEED, effort=0.0)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
