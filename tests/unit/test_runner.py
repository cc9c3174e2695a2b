"""What decoders ask of whatever runs their networks: bytes of pictures, and noise that is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_stages import Hidden, MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import Recipe
from rtdecode.decode.families.mindeye2.unclip_step import Unclip
from rtdecode.decode.runtime.runner import _image, tensor_runner
from rtdecode.decode.sampling.noise import normal
from rtdecode.decode.sampling.schedule import cosine_schedule

SIDE, TOKENS, DIM = 3, 2, 5
LATENT = (1, 4, SIDE, SIDE)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.5), (0.8, 0.2)])
def test_bytes_made_where_the_networks_run_are_those_made_on_the_host(scale: float, shift: float) -> None:
    torch = pytest.importorskip("torch")
    picture = np.random.default_rng(0).normal(0, 1, (1, 3, 20, 30)).astype(np.float32)
    found = tensor_runner((), dict.get, device="cpu").image(torch.from_numpy(picture), scale, shift)
    assert found.dtype == np.uint8
    assert found.shape == (20, 30, 3)
    exact = 255 * np.clip(picture[0].astype(np.float64) * scale + shift, 0, 1).transpose(1, 2, 0)
    assert np.abs(found - exact).max() < 0.5001
    np.testing.assert_array_equal(found, _image(picture, scale, shift))


class Drawn:
    """Remembers what noise it gave."""

    def __init__(self) -> None:
        self.noise: list[np.ndarray[Any, Any]] = []

    def normal(self, key: tuple[int, int], shape: Sequence[int]) -> Any:
        self.noise.append(normal(np, key, shape))
        return self.noise[-1]


def mind_of(drawn: Drawn, recipe: Recipe) -> MindEye2:
    def step(values: Any) -> dict[str, Any]:
        return {"noise": 0.1 * values["x"]}

    unclip = Unclip(
        context_part=lambda values: {"keys": values["tokens"]},
        step_part=step,
        vector=np.zeros(4, np.float32),
        join=np.concatenate,
        level=lambda number, rows: np.full(len(rows), number),
    )
    stages: dict[str, Any] = dict.fromkeys(("backbone", "caption", "picture", "blurry", "embed", "refiner"))
    stages |= {
        "ridge": (np.zeros((2, 3), np.float32), np.zeros(2, np.float32)),
        "schedule": cosine_schedule(100),
        "prior": lambda x, t, condition, guidance: condition,
        "unclip": unclip,
        "latent_side": SIDE,
        "small_picture": lambda latent: latent[:, :3],
        "normal": drawn.normal,
        "image": _image,
        "fallbacks": tuple,
        "whole": lambda _, function: function,
        "array": np.asarray,
        "host": np.asarray,
    }
    return MindEye2(MindEye2Stages(**stages), recipe)


@pytest.mark.parametrize("sampler", ["euler", "consistency"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_only_noise_that_is_used_is_drawn(sampler: Any, guidance: float) -> None:
    drawn = Drawn()
    recipe = Recipe(unclip_steps=3, unclip_sampler=sampler, unclip_guidance=guidance, small_autoencoder=True)
    tokens = np.ones((1, TOKENS, DIM), np.float32)
    mind_of(drawn, recipe).image(Hidden(tokens=tokens, retrieval=tokens, latent=None), tokens, seed=3)
    shapes = [noise.shape for noise in drawn.noise]
    assert shapes.count((1, TOKENS, DIM)) == (guidance != 1)  # the unconditional side
    assert shapes.count(LATENT) == (2 if sampler == "euler" else 4)  # latent and start; fresh noise of two more steps
    assert shapes.count((1,)) == (1 if sampler == "euler" else 3)  # an offset beside each noise
    values = np.concatenate([noise.ravel() for noise in drawn.noise])
    assert len(np.unique(values)) == len(values)  # no stream is another's


def test_a_picture_and_its_bytes_are_the_same() -> None:
    tokens = np.ones((1, TOKENS, DIM), np.float32)
    hidden = Hidden(tokens=tokens, retrieval=tokens, latent=None)
    mind = mind_of(Drawn(), Recipe(unclip_steps=2, small_autoencoder=True))
    picture, image = mind.picture(hidden, tokens, seed=1), mind.image(hidden, tokens, seed=1)
    assert picture is not None
    assert image is not None
    np.testing.assert_array_equal(np.rint(picture * 255).astype(np.uint8).transpose(1, 2, 0), image)
    other = mind.image(hidden, tokens, seed=2)
    assert other is not None
    assert np.any(other != image)


def test_another_prior_is_not_hidden_by_what_was_captured_of_the_former() -> None:
    def whole(_: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a graph: whatever is called later, it gives what was computed when it was captured."""
        captured: list[Any] = []

        def replay(*given: Any) -> Any:
            if not captured:
                captured.append(function(*given))
            return captured[0]

        return replay

    mind = mind_of(Drawn(), Recipe(prior_steps=2, prior_sampler="consistency", small_autoencoder=True))
    stages = replace(mind.stages, whole=whole)
    mind.take_stages(stages)
    tokens = np.ones((1, 2, 3), np.float32)
    hidden = Hidden(tokens=tokens, retrieval=tokens, latent=None)
    first = mind.clean(hidden, seed=0)
    mind.take_stages(replace(stages, prior=lambda x, t, condition, guidance: 3 * condition))
    np.testing.assert_allclose(mind.clean(hidden, seed=0), 3 * first)
