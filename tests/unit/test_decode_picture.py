from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rtdecode.decode.families.tiny.painter import Painter
from rtdecode.errors import EngineError
from tests.decode_small import tiny_stages


def test_seed_and_trial_fix_the_picture() -> None:
    tokens = tiny_stages().prototypes[7]  # a scrambled picture: its pieces are the sampler's own
    first = Painter(tiny_stages(), seed=3).paint(tokens, "r01t001")
    assert first.dtype == np.uint8
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, Painter(tiny_stages(), seed=3).paint(tokens, "r01t001"))
    assert not np.array_equal(first, Painter(tiny_stages(), seed=3).paint(tokens, "r01t002"))
    assert not np.array_equal(first, Painter(tiny_stages(), seed=4).paint(tokens, "r01t001"))


def test_a_painter_forgets_what_it_painted() -> None:
    painter = Painter(tiny_stages())
    first = painter.paint(tiny_stages().prototypes[0], "r01t001")
    painter.paint(tiny_stages().prototypes[3], "r01t002")
    np.testing.assert_array_equal(first, painter.paint(tiny_stages().prototypes[0], "r01t001"))


class Counting:
    """An engine that counts its calls."""

    def __init__(self, engine: object) -> None:
        self._engine = engine
        self.calls = 0

    def run(self, values: object) -> object:
        self.calls += 1
        return self._engine.run(values)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("prior", "unclip"), [(None, None), (1, 1), (3, 4)])
def test_networks_are_called_as_often_as_asked(prior: int | None, unclip: int | None) -> None:
    names = ("prior", "unclip", "unclip_context", "autoencoder")
    counted = {name: Counting(getattr(tiny_stages(), name)) for name in names}
    stages = dataclasses.replace(tiny_stages(), **counted)  # type: ignore[arg-type]
    Painter(stages, prior_steps=prior, unclip_steps=unclip).paint(stages.prototypes[0], "r01t001")
    sampling = stages.sampling
    asked = (prior or sampling.prior.steps, unclip or sampling.unclip.steps)
    assert [counted[name].calls for name in names] == [*asked, 1, 1]


def test_a_number_of_steps_that_there_are_no_levels_for_is_refused() -> None:
    for steps in ({"prior_steps": 101}, {"unclip_steps": 0}):
        with pytest.raises(EngineError, match=r"steps.*expected 1 to 100+"):
            Painter(tiny_stages(), **steps)
