"""The contract suite that ships with the package, over all there are; and that it finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdecode.clock import Clock, SystemClock
from rtdecode.decode.families.mindeye2 import FAMILY as MINDEYE2
from rtdecode.decode.families.tiny import FAMILY as TINY
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.pipeline import VolumeContext
from rtdecode.decode.sampling.prior_sampler import ConsistencySampler, FewStepSampler, PublishedSampler, prior_sampler
from rtdecode.decode.sampling.schedule import CosineSchedule, cosine_schedule
from rtdecode.decoded import Prediction
from rtdecode.errors import EngineError
from rtdecode.records import RegisteredVolume
from rtdecode.testing import check_clock, check_engine, check_family, check_prior_sampler
from tests.conftest import FakeClock
from tests.decode_small import FakeEngine, tiny_pack
from tests.system.example_family import ExamplePipeline
from tests.unit.test_mindeye2_session import DECODED, make_pack, write_stimuli


@pytest.mark.parametrize("made", [SystemClock, FakeClock])
def test_clocks(made: Callable[[], Clock]) -> None:
    check_clock(made())


@pytest.mark.parametrize(
    ("made", "steps"), [(PublishedSampler, 20), (PublishedSampler, 100), (FewStepSampler, 2), (ConsistencySampler, 2)]
)
def test_prior_samplers(made: Callable[[CosineSchedule, int], Any], steps: int) -> None:
    check_prior_sampler(made, steps=steps)


def test_the_tiny_family() -> None:
    check_family(TINY, tiny_pack())


class Remembering(ExamplePipeline):
    """Keeps something from one volume to the next."""

    seen = 0

    def predict(self, volume: RegisteredVolume, context: VolumeContext) -> Prediction:
        self.seen += 1
        return Prediction(values={"seen": float(self.seen)})


@pytest.mark.parametrize(
    ("pipeline", "outcome"),
    [
        (ExamplePipeline, nullcontext()),
        (Remembering, pytest.raises(AssertionError, match="depends on more than its volumes")),
    ],
)
def test_a_family_that_predicts_of_volumes(
    pipeline: type[TinyPipeline], outcome: AbstractContextManager[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = type(TINY).pipeline

    def other(*arguments: Any, **options: Any) -> TinyPipeline:
        loaded = load(*arguments, **options)
        loaded.__class__ = pipeline
        return loaded

    monkeypatch.setattr(type(TINY), "pipeline", other)
    with outcome:
        check_family(TINY, tiny_pack())


@pytest.mark.parametrize("stages", [DECODED, ("ridge", "backbone", "prior")])
def test_the_family_of_mindeye2(stages: Sequence[str], tmp_path: Path) -> None:
    pack = make_pack(tmp_path, stages)
    write_stimuli(tmp_path / "stimuli", pack)
    check_family(MINDEYE2, pack, tmp_path / "stimuli")


class Forgetful(FewStepSampler):
    def sample(self, predict: Any, noise: Sequence[Any]) -> Any:
        return noise[0]


class Restless(PublishedSampler):
    def sample(self, predict: Any, noise: Sequence[Any]) -> Any:
        return super().sample(predict, noise) + np.random.default_rng().standard_normal(noise[0].shape) * 1e-4


class Careless(FakeEngine):
    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"total": sum(values.values())}


class Backwards(FakeClock):
    def monotonic(self) -> float:
        self.now -= 1.0
        return self.now


def test_the_suite_finds_what_is_wrong() -> None:
    with pytest.raises(AssertionError, match="certain is not believed"):
        check_prior_sampler(Forgetful, steps=2)
    with pytest.raises(AssertionError, match=r"the same noise gave|expected float32"):
        check_prior_sampler(Restless, steps=20)
    with pytest.raises(AssertionError, match="a missing input: expected EngineError, got none"):
        check_engine(Careless(), {name: np.ones((2, 3), np.float32) for name in "ab"})
    with pytest.raises(AssertionError, match="sleep"):
        check_clock(Backwards())


def test_a_sampler_that_is_not_there_or_cannot_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"prior sampler: expected one of consistency, few, published, got 'heun'"):
        prior_sampler("heun", cosine_schedule(100), 8)
    for name, steps in (("published", 1), ("few", 101)):
        with pytest.raises(EngineError, match=f"prior sampler {name}: .*expected"):
            prior_sampler(name, cosine_schedule(100), steps)
