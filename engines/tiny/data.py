"""Seeded samples of the picture world as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.tiny.layout import CAPTION_LENGTH, CODE, caption_ids, scene_code, vocabulary
from rtdecode.simulate.world import PICTURE_PX, Scene, render, sample_scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`n` pictures of the world and what is known of them.

    Attributes
    ----------
    scenes : tuple of Scene
    pictures : ndarray of shape (n, 3, 64, 64), uint8
    masks : ndarray of shape (n, 1, 64, 64), bool
        Object pixels.
    codes : ndarray of shape (n, CODE), float32
    captions : ndarray of shape (n, CAPTION_LENGTH), int64
    """

    scenes: tuple[Scene, ...]
    pictures: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    codes: NDArray[np.float32]
    captions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scenes)


def draw_sample(n: int, seed: int) -> Sample:
    """Draw `n` scenes and render them; about 1.3 ms a picture."""
    rng = np.random.default_rng(seed)
    scenes = tuple(sample_scene(rng) for _ in range(n))
    pictures = np.empty((n, 3, PICTURE_PX, PICTURE_PX), dtype=np.uint8)
    masks = np.empty((n, 1, PICTURE_PX, PICTURE_PX), dtype=np.bool_)
    codes = np.empty((n, CODE), dtype=np.float32)
    captions = np.empty((n, CAPTION_LENGTH), dtype=np.int64)
    numbers = {word: number for number, word in enumerate(vocabulary())}
    for i, scene in enumerate(scenes):
        picture, mask = render(scene)
        pictures[i] = picture.transpose(2, 0, 1)
        masks[i, 0] = mask
        codes[i] = scene_code(scene)
        captions[i] = caption_ids(scene, numbers)
    return Sample(scenes=scenes, pictures=pictures, masks=masks, codes=codes, captions=captions)
