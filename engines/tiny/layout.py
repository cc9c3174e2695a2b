"""Token layout of the tiny pack: what each token means, without torch.

A picture is 20 tokens of 32 channels. The first four are *semantic*: category, colour, background, geometry, each an
explicit low-dimensional code in the leading channels of its token, the other channels zero. The remaining 16 are
*spatial*: a 4 x 4 grid of what the code does not say. Scales give the category about a fifth of the token variance.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rtdecode.simulate.world import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    SIZE_RANGE,
    TILT_RANGE_DEG,
    Scene,
    caption,
)

TOKENS: Final = 20
SEMANTIC_TOKENS: Final = 4
GRID: Final = 4
CHANNELS: Final = 32
SEMANTIC_VALUES: Final = SEMANTIC_TOKENS * CHANNELS
VALUES: Final = TOKENS * CHANNELS
SPATIAL_SCALE: Final = 0.35

GEOMETRY: Final = ("size", "x", "y", "tilt", "facing", "style")
CONTINUOUS: Final = 4
"""So many of the geometry values are continuous; the others are binary."""
BLOCKS: Final = (len(CATEGORIES), len(COLOURS), len(BACKGROUNDS), len(GEOMETRY))
BLOCK_SCALES: Final = (5.0, 3.5, 3.5, 2.0)
CODE: Final = sum(BLOCKS)
BINARY_LEVEL: Final = 0.6
"""Facing and style are plus or minus this: as much variance as a position has."""

ADAPTER_INPUTS: Final[dict[str, list[int | str]]] = {
    "beta": ["batch", "voxels"],
    "mean": ["voxels"],
    "scale": ["voxels"],
    "weights": ["voxels", "components"],
    "intercept": ["components"],
    "basis": ["components", VALUES],
    "token_mean": [VALUES],
}
"""Shapes of what the ridge adapter is given."""

PAD: Final = 0
END: Final = 1
CAPTION_LENGTH: Final = 13


def code_slices() -> tuple[slice, ...]:
    """Slices of category, colour, background and geometry in a code of `CODE` values."""
    stops = np.cumsum(BLOCKS)
    return tuple(slice(int(stop - n), int(stop)) for n, stop in zip(BLOCKS, stops, strict=True))


def scene_code(scene: Scene) -> NDArray[np.float32]:
    """Semantic code of a scene.

    Returns
    -------
    ndarray of shape (CODE,), float32
        One-hot category, colour, background; size, x, y, tilt from -1 to 1; facing and style, plus or minus
        `BINARY_LEVEL`. Geometry is 0 for a scrambled picture.
    """
    low, high = SIZE_RANGE
    geometry = np.zeros(len(GEOMETRY))
    if scene.category != "scrambled":
        size = 2 * (scene.size - low) / (high - low) - 1
        facing = -BINARY_LEVEL if scene.flip else BINARY_LEVEL
        tilt = scene.tilt_deg / TILT_RANGE_DEG[1]
        geometry[:] = size, scene.x, scene.y, tilt, facing, BINARY_LEVEL * (2 * scene.variant - 1)
    one_hots = [
        np.eye(len(names))[names.index(value)]
        for names, value in (
            (CATEGORIES, scene.category),
            (COLOURS, scene.colour),
            (BACKGROUNDS, scene.background),
        )
    ]
    return np.concatenate([*one_hots, geometry]).astype(np.float32)


def vocabulary() -> list[str]:
    """Words of the captions; a word's place is its number, 0 pads and 1 ends."""
    nouns = [name for name in CATEGORIES if name not in ("scissors", "scrambled")]
    phrases = (
        "a small big pair of scissors scrambled pieces picture on the left right in middle meadow beach at night room"
    )
    return ["<pad>", "<end>", *dict.fromkeys([*nouns, *COLOURS, *phrases.split()])]


def caption_ids(scene: Scene, numbers: dict[str, int]) -> NDArray[np.int64]:
    """Numbers of the words of a scene's caption, then `END`, then `PAD`: shape (CAPTION_LENGTH,)."""
    words = caption(scene).split()
    ids = np.full(CAPTION_LENGTH, PAD, dtype=np.int64)
    ids[: len(words)] = [numbers[word] for word in words]
    ids[len(words)] = END
    return ids
