from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdecode.simulate import world


def scene_of(seed: int, category: str | None = None) -> world.Scene:
    return world.sample_scene(np.random.default_rng(seed), category)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_scene_always_gives_the_same_picture(seed: int) -> None:
    scene = scene_of(seed)
    picture, mask = world.render(scene)
    again, mask_again = world.render(scene)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert mask.shape == (64, 64)
    assert mask.dtype == np.bool_
    assert np.array_equal(picture, again)
    assert np.array_equal(mask, mask_again)


@pytest.mark.parametrize("category", world.CATEGORIES)
def test_the_object_lies_where_the_mask_is(category: str) -> None:
    scene = dataclasses.replace(scene_of(3, category), colour="purple", background="meadow", tilt_deg=0.0)
    picture, mask = world.render(scene)
    purple = np.abs(picture.astype(int) - (146, 58, 182)).sum(2) < 30
    assert purple.sum() > 20
    assert mask[purple].mean() > 0.97
    if category != "scrambled":
        assert 0.03 < mask.mean() < 0.8


@pytest.mark.parametrize(("x", "side"), [(-1.0, "left"), (0.0, "in the middle"), (1.0, "right")])
def test_position_is_that_of_the_object_and_of_the_caption(x: float, side: str) -> None:
    scene = dataclasses.replace(scene_of(5, "house"), x=x, size=0.6)
    _, mask = world.render(scene)
    centre = np.nonzero(mask)[1].mean() / 63
    assert np.sign(centre - 0.5) == np.sign(x) or abs(centre - 0.5) < 0.05
    assert side in world.caption(scene)


def test_a_scrambled_picture_holds_the_blocks_of_an_ordered_one() -> None:
    scene = scene_of(11, "scrambled")
    picture, mask = world.render(scene)
    assert mask.all()
    blocks = picture.reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, 8, 8, 3)
    underlying = [
        world.render(dataclasses.replace(scene, category=name))[0].reshape(8, 8, 8, 8, 3).swapaxes(1, 2)
        for name in world.CATEGORIES[:-1]
    ]
    found = {block.tobytes() for block in blocks}
    assert any(found == {block.tobytes() for block in image.reshape(64, 8, 8, 3)} for image in underlying)


def test_a_seed_draws_the_same_other_choices_for_any_category() -> None:
    house, cat = scene_of(9, "house"), scene_of(9, "cat")
    assert dataclasses.replace(house, category="cat") == cat


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a category among face"):
        scene_of(0, "dog")


def test_pictures_of_a_category_differ_and_categories_are_drawn_evenly() -> None:
    rng = np.random.default_rng(1)
    names = [world.sample_scene(rng).category for _ in range(4000)]
    counts = np.array([names.count(name) for name in world.CATEGORIES])
    assert counts.min() > 420
    pictures = {world.render(world.sample_scene(rng, "cat"))[0].tobytes() for _ in range(20)}
    assert len(pictures) == 20
