"""A procedural picture world: eight nameable categories, six colours, four backgrounds.

The tiny engine pack is trained on it and the simulated scanner shows it. A `Scene` is the complete, small description
of one picture; `render` and `caption` are pure functions of it.

Only numpy and Pillow are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CATEGORIES: Final = ("face", "house", "cat", "bottle", "scissors", "shoe", "chair", "scrambled")
COLOURS: Final = ("red", "yellow", "green", "blue", "purple", "white")
BACKGROUNDS: Final = ("meadow", "beach", "night", "room")

PICTURE_PX: Final = 64
SIZE_RANGE: Final = (0.6, 0.95)
TILT_RANGE_DEG: Final = (-6.0, 6.0)
N_VARIANTS: Final = 2

_SUPERSAMPLING: Final = 3
_CANVAS: Final = PICTURE_PX * _SUPERSAMPLING
_BLOCK_PX: Final = 8
_SMALL_BELOW: Final = 0.775
_SIDE_BEYOND: Final = 1.0 / 3.0

RGB = tuple[int, int, int]
_INK: Final[RGB] = (22, 22, 28)
_RGB: Final[dict[str, RGB]] = {
    "red": (214, 38, 38),
    "yellow": (250, 210, 40),
    "green": (34, 160, 62),
    "blue": (40, 100, 222),
    "purple": (146, 58, 182),
    "white": (246, 246, 246),
}
_GROUND_ROW: Final = 0.62
_SKY_GROUND: Final[dict[str, tuple[RGB, RGB, RGB, RGB]]] = {
    "meadow": ((110, 180, 250), (200, 228, 250), (92, 186, 74), (52, 130, 46)),
    "beach": ((60, 190, 214), (176, 232, 236), (246, 216, 150), (222, 184, 112)),
    "night": ((8, 12, 44), (34, 34, 92), (24, 42, 40), (10, 20, 22)),
    "room": ((226, 206, 190), (236, 220, 206), (150, 96, 58), (112, 66, 36)),
}
_PLACE: Final = {"meadow": "in a meadow", "beach": "on a beach", "night": "at night", "room": "in a room"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture, described completely.

    Parameters
    ----------
    category, colour, background : str
        Members of `CATEGORIES`, `COLOURS`, `BACKGROUNDS`.
    size : float
        Extent of the object as a fraction of the picture, within `SIZE_RANGE`.
    x, y : float
        Position within the room that the object leaves, -1 (left, top) to 1 (right, bottom).
    flip : bool
        Mirror the object left to right.
    tilt_deg : float
        Rotation of the object, degrees.
    variant : int
        Drawing variant of the category, 0 to ``N_VARIANTS - 1``.
    detail_seed : int
        Seeds what no caption mentions: stars, the sun's place, the order of scrambled blocks.
    """

    category: str
    colour: str
    background: str
    size: float
    x: float
    y: float
    flip: bool
    tilt_deg: float
    variant: int
    detail_seed: int


def sample_scene(rng: np.random.Generator, category: str | None = None) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every choice; advances by the same amount whatever the category.
    category : str, optional
        Fixed category; uniform over `CATEGORIES` when omitted.

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        If `category` is not one of `CATEGORIES`.
    """
    drawn = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"expected a category among {', '.join(CATEGORIES)}, got {category!r}")
    return Scene(
        category=category or drawn,
        colour=COLOURS[int(rng.integers(len(COLOURS)))],
        background=BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))],
        size=float(rng.uniform(*SIZE_RANGE)),
        x=float(rng.uniform(-1, 1)),
        y=float(rng.uniform(-1, 1)),
        flip=bool(rng.integers(2)),
        tilt_deg=float(rng.uniform(*TILT_RANGE_DEG)),
        variant=int(rng.integers(N_VARIANTS)),
        detail_seed=int(rng.integers(2**31)),
    )


def caption(scene: Scene) -> str:
    """Describe a scene in one sentence, e.g. ``a small red cat on the left in a meadow``."""
    if scene.category == "scrambled":
        return f"scrambled {scene.colour} pieces of a picture {_PLACE[scene.background]}"
    size = "small" if scene.size < _SMALL_BELOW else "big"
    side = "on the left" if scene.x < -_SIDE_BEYOND else "on the right" if scene.x > _SIDE_BEYOND else "in the middle"
    noun = "pair of scissors" if scene.category == "scissors" else scene.category
    return f"a {size} {scene.colour} {noun} {side} {_PLACE[scene.background]}"


def render(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a scene.

    Returns
    -------
    picture : ndarray of shape (64, 64, 3), uint8
        sRGB.
    mask : ndarray of shape (64, 64), bool
        Pixels of the object; all of them for a scrambled picture.
    """
    details = np.random.default_rng(scene.detail_seed)
    canvas = _background(scene, details)
    mask = Image.new("L", canvas.size, 0)
    drawn = (
        _SCRAMBLED_FROM[scene.detail_seed % len(_SCRAMBLED_FROM)] if scene.category == "scrambled" else scene.category
    )
    pen = _Pen(scene, ImageDraw.Draw(canvas), ImageDraw.Draw(mask))
    pen.shadow()
    _DRAW[drawn](pen, scene.variant)
    picture = np.asarray(canvas.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX), dtype=np.uint8)
    inside = np.asarray(mask.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)) > 64
    if scene.category == "scrambled":
        return _scramble(picture, details), np.ones_like(inside)
    return picture.copy(), inside


def _scramble(picture: NDArray[np.uint8], details: np.random.Generator) -> NDArray[np.uint8]:
    n = PICTURE_PX // _BLOCK_PX
    blocks = picture.reshape(n, _BLOCK_PX, n, _BLOCK_PX, 3).swapaxes(1, 2).reshape(n * n, _BLOCK_PX, _BLOCK_PX, 3)
    blocks = blocks[details.permutation(n * n)].reshape(n, n, _BLOCK_PX, _BLOCK_PX, 3)
    return np.ascontiguousarray(blocks.swapaxes(1, 2).reshape(PICTURE_PX, PICTURE_PX, 3))


def _background(scene: Scene, details: np.random.Generator) -> Image.Image:
    sky_top, sky_low, ground_near, ground_far = (np.array(c, dtype=np.float64) for c in _SKY_GROUND[scene.background])
    rows = np.linspace(0, 1, _CANVAS)[:, None]
    above = np.clip(rows / _GROUND_ROW, 0, 1)
    below = np.clip((rows - _GROUND_ROW) / (1 - _GROUND_ROW), 0, 1)
    sky = sky_top + above * (sky_low - sky_top)
    ground = ground_near + below * (ground_far - ground_near)
    column = np.where(rows < _GROUND_ROW, sky, ground).astype(np.uint8)
    image = Image.fromarray(np.repeat(column[:, None, :], _CANVAS, axis=1))
    draw = ImageDraw.Draw(image)
    sun_x = _CANVAS * (0.14 if details.integers(2) else 0.86)
    radius = 0.07 * _CANVAS
    sun = (sun_x - radius, 0.12 * _CANVAS - radius, sun_x + radius, 0.12 * _CANVAS + radius)
    if scene.background == "night":
        draw.ellipse(sun, fill=(246, 238, 200))
        for star_x, star_y in details.uniform(0, 1, (10, 2)):
            px, py = star_x * _CANVAS, star_y * 0.5 * _CANVAS
            draw.ellipse((px - 1, py - 1, px + 1, py + 1), fill=(235, 235, 220))
    elif scene.background in ("meadow", "beach"):
        draw.ellipse(sun, fill=(255, 226, 96))
    else:
        for row in np.linspace(_GROUND_ROW, 1, 5)[:-1]:
            draw.line((0, row * _CANVAS, _CANVAS, row * _CANVAS), fill=(92, 54, 30), width=2)
    return image


class _Pen:
    """Draws in object coordinates (-1 to 1, y down) through the scene's placement, on picture and mask alike."""

    def __init__(self, scene: Scene, canvas: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw) -> None:
        half = 0.5 * scene.size * _CANVAS
        free = 0.5 * _CANVAS - half
        angle = np.deg2rad(scene.tilt_deg)
        mirror = -1.0 if scene.flip else 1.0
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._matrix = half * rotation @ np.diag([mirror, 1.0])
        self._centre = np.array([0.5 * _CANVAS + scene.x * free, 0.5 * _CANVAS + scene.y * free])
        self._ink_px = max(2, round(0.055 * half))
        self._half = half
        self._canvas = canvas
        self._mask = mask
        self.colour = _RGB[scene.colour]
        self.dark: RGB = _shade(self.colour, 0.68)

    def _place(self, points: NDArray[np.float64]) -> list[tuple[float, float]]:
        placed = points @ self._matrix.T + self._centre
        return [(float(x), float(y)) for x, y in placed]

    def polygon(self, points: list[tuple[float, float]], fill: RGB, *, ink: bool = True) -> None:
        placed = self._place(np.array(points, dtype=np.float64))
        self._canvas.polygon(placed, fill=fill)
        self._mask.polygon(placed, fill=255)
        if ink:
            closed = [*placed, placed[0], placed[1]]
            self._canvas.line(closed, fill=_INK, width=self._ink_px, joint="curve")
            self._mask.line(closed, fill=255, width=self._ink_px, joint="curve")

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, *, ink: bool = True) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, ink=ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, *, ink: bool = True) -> None:
        turn = np.linspace(0, 2 * np.pi, 29)[:-1]
        self.polygon([(x + rx * float(np.cos(t)), y + ry * float(np.sin(t))) for t in turn], fill, ink=ink)

    def line(self, points: list[tuple[float, float]], fill: RGB, width: float) -> None:
        placed = self._place(np.array(points, dtype=np.float64))
        px = max(1, round(width * self._half))
        self._canvas.line(placed, fill=fill, width=px, joint="curve")
        self._mask.line(placed, fill=255, width=px, joint="curve")

    def ring(self, x: float, y: float, rx: float, ry: float, width: float) -> None:
        turn = np.linspace(0, 2 * np.pi, 29)
        loop = [(x + rx * float(np.cos(t)), y + ry * float(np.sin(t))) for t in turn]
        loop.append(loop[1])
        self.line(loop, _INK, width + 0.1)
        self.line(loop, self.colour, width)

    def shadow(self) -> None:
        x, y = self._centre
        box = (x - 0.8 * self._half, y + 0.9 * self._half, x + 0.8 * self._half, y + 1.06 * self._half)
        self._canvas.ellipse(box, fill=(60, 60, 56))


def _shade(colour: RGB, factor: float) -> RGB:
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


def _face(pen: _Pen, variant: int) -> None:
    hair: RGB = (62, 38, 22) if variant == 0 else (214, 160, 62)
    if variant == 0:
        pen.ellipse(0, -0.12, 0.76, 0.86, hair)
    else:
        pen.polygon(
            [(-0.8, 0.95), (-0.84, -0.2), (-0.5, -0.85), (0, -0.98), (0.5, -0.85), (0.84, -0.2), (0.8, 0.95)], hair
        )
    pen.ellipse(0, 0.1, 0.64, 0.86, pen.colour)
    fringe = [(-0.64, -0.05), (-0.6, -0.5), (-0.3, -0.84), (0, -0.9), (0.3, -0.84), (0.6, -0.5), (0.64, -0.05)]
    pen.polygon([*fringe, (0.42, -0.42), (0.05, -0.46), (-0.4, -0.38)], hair, ink=False)
    for side in (-1, 1):
        pen.ellipse(side * 0.27, 0.0, 0.17, 0.13, (255, 255, 255))
        pen.ellipse(side * 0.25, 0.01, 0.07, 0.09, _INK, ink=False)
        pen.line([(side * 0.12, -0.2), (side * 0.44, -0.24)], _INK, 0.07)
    pen.line([(0.02, 0.08), (-0.08, 0.34), (0.08, 0.36)], _INK, 0.06)
    pen.polygon([(-0.3, 0.54), (0, 0.6), (0.3, 0.54), (0.14, 0.72), (-0.14, 0.72)], (196, 20, 40))


def _house(pen: _Pen, variant: int) -> None:
    pen.rectangle(0.42, -0.92, 0.64, -0.3, (128, 70, 52))
    pen.rectangle(-0.76, -0.16, 0.76, 0.95, pen.colour)
    pen.polygon([(-0.98, -0.12), (0, -0.96), (0.98, -0.12)], (120, 54, 40))
    glass: RGB = (176, 224, 250)
    if variant == 0:
        pen.rectangle(-0.2, 0.35, 0.2, 0.95, (84, 48, 26))
        windows = [(-0.62, 0.05, -0.3, 0.38), (0.3, 0.05, 0.62, 0.38)]
    else:
        pen.rectangle(-0.58, 0.3, -0.2, 0.95, (84, 48, 26))
        windows = [(0.02, 0.1, 0.6, 0.52)]
    for x0, y0, x1, y1 in windows:
        pen.rectangle(x0, y0, x1, y1, glass)
        pen.line([((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1)], _INK, 0.05)


def _cat(pen: _Pen, variant: int) -> None:
    tail = (
        [(0.4, 0.75), (0.78, 0.7), (0.86, 0.3), (0.7, 0.0)] if variant == 0 else [(0.4, 0.8), (0.8, 0.85), (0.95, 0.6)]
    )
    pen.line(tail, _INK, 0.26)
    pen.line(tail, pen.colour, 0.16)
    pen.ellipse(0, 0.52, 0.5, 0.46, pen.colour)
    for side in (-1, 1):
        pen.polygon([(side * 0.48, -0.3), (side * 0.46, -0.98), (side * 0.06, -0.62)], pen.colour)
        pen.polygon([(side * 0.4, -0.5), (side * 0.4, -0.8), (side * 0.2, -0.62)], (240, 160, 170), ink=False)
    pen.ellipse(0, -0.28, 0.56, 0.44, pen.colour)
    for side in (-1, 1):
        pen.ellipse(side * 0.24, -0.34, 0.14, 0.15, (206, 236, 90))
        pen.ellipse(side * 0.24, -0.34, 0.05, 0.12, _INK, ink=False)
        pen.line([(side * 0.2, -0.08), (side * 0.8, -0.16)], _INK, 0.045)
        pen.line([(side * 0.2, -0.02), (side * 0.8, 0.04)], _INK, 0.045)
        pen.ellipse(side * 0.2, 0.9, 0.16, 0.09, pen.colour)
    pen.polygon([(-0.09, -0.15), (0.09, -0.15), (0, -0.04)], (236, 110, 130), ink=False)


def _bottle(pen: _Pen, variant: int) -> None:
    shoulder = -0.25 if variant == 0 else -0.05
    neck = [(0.14, -0.78), (0.14, shoulder - 0.18), (0.36, shoulder + 0.08), (0.36, 0.95)]
    pen.polygon([*neck, *[(-x, y) for x, y in reversed(neck)]], pen.colour)
    pen.rectangle(-0.18, -0.98, 0.18, -0.76, (52, 40, 36))
    pen.rectangle(-0.36, 0.22, 0.36, 0.66, (250, 244, 226))
    pen.ellipse(0, 0.44, 0.13, 0.13, pen.dark, ink=False)
    pen.line([(-0.22, shoulder + 0.12), (-0.22, 0.14)], (255, 255, 255), 0.07)


def _scissors(pen: _Pen, variant: int) -> None:
    steel: RGB = (196, 202, 210)
    spread = 0.42 if variant == 0 else 0.62
    for side in (-1, 1):
        pen.ring(side * 0.4, 0.64, 0.27, 0.28, 0.15)
    for side in (-1, 1):
        pen.polygon(
            [(-side * 0.22, 0.42), (-side * 0.04, 0.34), (side * spread, -0.98), (side * (spread - 0.26), -0.8)], steel
        )
    pen.ellipse(0, 0.12, 0.09, 0.09, (90, 90, 96))


def _shoe(pen: _Pen, variant: int) -> None:
    top = -0.5 if variant == 0 else -0.72
    upper = [(-0.9, 0.42), (-0.86, top), (-0.3, top), (-0.16, -0.12), (0.3, 0.02), (0.82, 0.12), (0.96, 0.42)]
    pen.polygon(upper, pen.colour)
    pen.rectangle(-0.96, 0.42, 0.98, 0.66, (250, 250, 250) if variant == 0 else (92, 56, 34))
    for step in range(3):
        x, y = -0.2 + 0.2 * step, -0.1 + 0.09 * step
        pen.line([(x - 0.14, y + 0.2), (x + 0.1, y - 0.06)], (255, 255, 255), 0.08)
    pen.ellipse(-0.58, 0.06, 0.15, 0.15, (255, 255, 255), ink=False)


def _chair(pen: _Pen, variant: int) -> None:
    for x in (-0.3, 0.62):
        pen.rectangle(x, 0.2, x + 0.13, 0.74, pen.dark)
    if variant == 0:
        pen.polygon([(-0.62, -0.95), (0.12, -0.95), (0.12, 0.12), (-0.62, 0.12)], pen.colour)
    else:
        pen.rectangle(-0.62, -0.95, 0.12, -0.7, pen.colour)
        for x in (-0.62, -0.32, -0.02):
            pen.rectangle(x, -0.72, x + 0.14, 0.12, pen.colour)
    pen.polygon([(-0.62, 0.1), (0.4, 0.1), (0.8, 0.34), (-0.4, 0.34)], pen.dark)
    for x in (-0.62, 0.36):
        pen.rectangle(x, 0.3, x + 0.16, 0.98, pen.colour)


_DRAW: Final[dict[str, Callable[[_Pen, int], None]]] = {
    "face": _face,
    "house": _house,
    "cat": _cat,
    "bottle": _bottle,
    "scissors": _scissors,
    "shoe": _shoe,
    "chair": _chair,
}
_SCRAMBLED_FROM: Final = tuple(_DRAW)
