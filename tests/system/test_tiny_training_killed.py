"""The tiny pack's training, killed while it writes a checkpoint, goes on as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("accelerate")

from engines.tiny import train  # noqa: E402
from engines.training import loop  # noqa: E402
from tests.system.killed_training import SEED  # noqa: E402
from tests.training_small import small_stage_settings  # noqa: E402

pytestmark = pytest.mark.system


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.system.killed_training", str(tmp_path / "killed")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == ["critic.safetensors", "joint.draft", "joint.safetensors", "judge.safetensors"]

    stepped: list[str] = []
    step = loop._step

    def counted(accelerator: object, model: torch.nn.Module, *rest: object) -> bool:
        stepped.append(type(model.module).__name__)
        return bool(step(accelerator, model, *rest))

    with mock.patch.multiple(train, **small_stage_settings(train.STAGES)):
        with mock.patch.object(loop, "_step", counted):
            resumed = train.train(tmp_path / "killed", seed=SEED, effort=0.0, resume=True)
        whole = train.train(tmp_path / "whole", seed=SEED, effort=0.0)
    assert stepped == ["ModuleList"] * 2 + ["TinyPrior"] * 3 + ["TinyDecoder"] * 3 + ["Captioner"] * 3
    for name in ("judge", "critic", "embedder", "decoder", "text", "projection", "prior", "captioner"):
        for key, value in getattr(whole, name).state_dict().items():
            assert torch.equal(value, getattr(resumed, name).state_dict()[key]), (name, key)
