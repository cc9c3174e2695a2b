"""The how-to "another prior sampler": one file in a package of its own, and nothing changed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from rtdecode.decode.families.tiny.painter import Painter
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.decode.families.tiny.tiny_stages import load_stages
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.testing import check_prior_sampler
from tests.decode_small import tiny_pack
from tests.examples import EXAMPLES, install

FILES = 1


def test_the_example_is_a_sampler_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="got 'multistep'"):
        prior_sampler("multistep", cosine_schedule(100), 8)
    made = install("prior_sampler", tmp_path, monkeypatch)
    assert isinstance(prior_sampler("multistep", cosine_schedule(100), 8), made.MultistepSampler)
    check_prior_sampler(made.MultistepSampler, steps=8)
    assert len(list((EXAMPLES / "prior_sampler").rglob("*.py"))) == FILES


def test_it_is_more_exact_than_single_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of normal tokens the flow is known: it scales the noise to their deviation."""
    install("prior_sampler", tmp_path, monkeypatch)
    schedule, deviation = cosine_schedule(100), 0.5
    noise = np.random.default_rng(0).standard_normal((1, 1, 4000)).astype(np.float32)

    def predict(x: np.ndarray, t: int) -> np.ndarray:
        left = float(schedule.alphas_cumprod[t])
        return x * (left**0.5 * deviation**2 / (left * deviation**2 + 1 - left))

    off = {
        name: abs(float(np.std(sampler.sample(predict, [noise]))) / float(np.std(noise)) - deviation)
        for name in ("multistep", "few")
        for sampler in [prior_sampler(name, schedule, 10)]
    }
    assert off["multistep"] < off["few"] / 2


def test_a_pack_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("prior_sampler", tmp_path, monkeypatch)
    pack = tiny_pack()
    said = pack.described(TinyDescription)
    prior = replace(said.sampling.prior, sampler="multistep", steps=4)
    said = replace(said, sampling=replace(said.sampling, prior=prior))
    stages = load_stages(EnginePack(folder=pack.folder, identity="x", description=said))
    pictures = [Painter(one).paint(stages.prototypes[0], "t") for one in (stages, load_stages(pack))]
    assert pictures[0].shape == pictures[1].shape == (64, 64, 3)
    assert np.any(pictures[0] != pictures[1])
