"""`engines train` and `engines distill` on two processes of this machine, as Accelerate starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from engines.training import loop  # noqa: E402
from engines.training.state import Ema  # noqa: E402
from rtdecode.demo.processes import free_port  # noqa: E402
from rtdecode.packs import open_pack  # noqa: E402
from tests.system.training_process import PLAN, Line, batches  # noqa: E402
from tests.training_small import write_distilling, write_settings, write_training  # noqa: E402

pytestmark = pytest.mark.system
PROCESSES = (0, 1)
STOP_AT = 3
ENDED_WELL = ("whole", "resumed", "prior", "unclip")


class Ran(NamedTuple):
    """What two processes left, and what each has printed."""

    folder: Path
    out: list[str]
    err: list[str]

    def weights(self, name: str, process: int) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = load_file(self.folder / f"{name}-{process}.safetensors")
        return loaded

    def codes(self, process: int) -> dict[str, int]:
        read: dict[str, int] = json.loads((self.folder / f"codes-{process}.json").read_text(encoding="utf-8"))
        return read


def command(name: str, stop_at: int | None, *words: object) -> tuple[str, int | None, list[str]]:
    return name, stop_at, [str(word) for word in words]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("training")
    write_training(folder)
    rows = torch.zeros(500, dtype=torch.int64)
    rows[-1] = 12  # one row in 500: the batches of a process hardly ever have it
    save_file({"betas": torch.randn(500, 7), "picture": rows}, folder / "stray.safetensors")
    good = write_settings(folder / "good.toml")
    write_settings(folder / "bad.toml", steps=0)
    write_settings(folder / "stray.toml", participants=["sub-01.safetensors", "stray.safetensors"])
    stages = ("ridge", "backbone", "prior", "unclip")
    write_fake_mindeye2(folder / "pack", dims="small", stages=stages, precision="float32")
    pictures, trials = write_distilling(folder, folder / "pack")
    few = (*pictures, "--steps", 3, "--batch", 2, "--rate", "1e-3", "--lose", 100)
    commands = [
        command("whole", None, "train", good, "--out", folder / "whole", "--licence", "ours"),
        command("parts", STOP_AT, "train", good, "--out", folder / "parts", "--licence", "ours"),
        command("resumed", None, "train", good, "--out", folder / "parts", "--licence", "ours", "--resume"),
        command("bad", None, "train", folder / "bad.toml", "--out", folder / "none", "--licence", "ours"),
        command("stray", None, "train", folder / "stray.toml", "--out", folder / "none", "--licence", "ours"),
        command("prior", None, "distill", "prior", folder / "pack", *few, *trials, "--out", folder / "fast"),
        command("unclip", None, "distill", "unclip", folder / "fast", *few, "--out", folder / "faster"),
        command("no_pack", None, "distill", "prior", folder / "nowhere", *few, *trials, "--out", folder / "none"),
    ]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "tests.system.training_process", str(folder), json.dumps(commands)]
    started = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**environment, "RANK": str(process), "LOCAL_RANK": str(process)},
        )
        for process in PROCESSES
    ]
    printed = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return Ran(folder=folder, out=[out for out, _ in printed], err=[err for _, err in printed])


def test_gradients_are_those_of_both_processes_batches(ran: Ran) -> None:
    class Both(torch.nn.Module):
        """Mean loss of the batches that two processes draw, in one process."""

        def __init__(self) -> None:
            super().__init__()
            self.line = Line()

        def forward(self, _: torch.Tensor, __: torch.Generator, progress: float) -> torch.Tensor:
            losses = []
            for process in PROCESSES:
                seed = PLAN.seed_at(round(progress * PLAN.steps), process)
                draw = torch.Generator().manual_seed(seed)
                torch.manual_seed(seed + 1)
                losses.append(self.line(batches(draw), draw, progress))
            return torch.stack(losses).mean()

    both = Both()
    ema = Ema(both.line, 0.9)
    loop.fit(both, batches, PLAN, folder=ran.folder / "both", resume=False, ema=ema)
    expected = {"module": both.line, "ema": ema.module}
    for process in PROCESSES:
        given = ran.weights("line", process)
        for part, module in expected.items():
            for name, value in module.named_parameters():
                torch.testing.assert_close(given[f"{part}/{name}"], value.detach())


@pytest.mark.parametrize("name", ["line", *ENDED_WELL])
def test_both_processes_end_with_the_same_weights(name: str, ran: Ran) -> None:
    first, second = (ran.weights(name, process) for process in PROCESSES)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_resumed_training_equals_an_uninterrupted_one(ran: Ran) -> None:
    whole, resumed = ran.weights("whole", 0), ran.weights("resumed", 0)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    for stage in ("ridge", "backbone", "prior"):
        packs = [load_file(ran.folder / out / f"{stage}.safetensors") for out in ("whole", "parts")]
        assert all(torch.equal(value, packs[1][key]) for key, value in packs[0].items())


def test_the_first_process_alone_seals_and_speaks(ran: Ran) -> None:
    out, err = ran.out[0], ran.err[0]
    for folder in ("whole", "parts", "fast", "faster"):
        assert out.count(f"{ran.folder / folder}: sealed as {open_pack(str(ran.folder / folder)).identity}") == 1
    assert out.count("sealed as") == len(ENDED_WELL)
    assert ran.out[1] == ""
    assert err.count("engines.training.loop: shared 0/6 loss") == 2
    assert "rtdecode: " not in ran.err[1]
    assert "engines.training.loop" not in ran.err[1]


def test_what_cannot_be_used_ends_both_processes_and_is_told_once(ran: Ran) -> None:
    first, second = (ran.codes(process) for process in PROCESSES)
    failed = {"parts": 130, "bad": 1, "stray": 1, "no_pack": 2}
    assert first == {name: failed.get(name, 0) for name in first}
    assert second == first | {"no_pack": 1}
    err = ran.err[0]
    assert err.count("bad.toml: Expected `int` >= 1 - at `$.steps`") == 1
    assert err.count("stray.safetensors: picture: expected rows of pictures.safetensors, integers from 0 to 11") == 1
    assert err.count("nowhere': expected a folder or an installed pack") == 1
    assert not (ran.folder / "none").exists()
