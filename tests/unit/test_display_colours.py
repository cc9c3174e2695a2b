"""The colours of the page in both themes: letters are read on their ground, and told apart whatever eyes see them."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

SHEET = files("rtdecode.publish.display").joinpath("page.css").read_text(encoding="utf-8")
# What dichromats see, in linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.0.
EYES = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def themes() -> dict[str, dict[str, str]]:
    """Return the named colours of each theme, as the stylesheet has them."""
    blocks = re.findall(r":root(\S*) \{(.*?)\}", SHEET, re.DOTALL)
    named = [(which, dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", body))) for which, body in blocks]
    assert [which for which, _ in named] == ["", ':not([data-theme="dark"])', '[data-theme="light"]']
    assert named[1][1] == named[2][1]  # asked for by the browser, or by the switch
    return {"dark": named[0][1], "light": named[2][1]}


def linear(colour: str) -> NDArray[np.float64]:
    """Return linear RGB of a colour (IEC 61966-2-1)."""
    srgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    weights = [0.2126, 0.7152, 0.0722]
    dark, light = sorted(float(linear(colour) @ weights) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(colour: str, eye: str) -> NDArray[np.float64]:
    """Return CIE L*a*b* (D65) of a colour as an eye sees it."""
    seen = np.clip(np.asarray(EYES[eye]) @ linear(colour), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = to_xyz @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_words_and_lines_stand_out_from_their_ground(theme: str) -> None:
    colours = themes()[theme]
    for ground in ("panel", "bg"):
        for words in ("ink", "dim", "good", "weak", "bad"):
            assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    for ground, words in (("deep", "ink"), ("deep", "dim"), ("bad", "on-bad"), ("skipped", "ink"), ("skipped", "dim"),
                          ("fault", "ink"), ("fault", "dim"), ("weak", "panel"), ("blue", "panel")):  # fmt: skip
        assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    for line in ("x", "y", "z", "blue"):
        assert contrast(colours[line], colours["panel"]) >= 3.0, line


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_colours_with_a_meaning_differ_for_every_eye(theme: str, eye: str) -> None:
    colours = themes()[theme]
    for names in (("x", "y", "z"), ("good", "bad"), ("good", "weak"), ("blue", "bad"), ("weak", "dim")):
        for one, other in combinations(names, 2):
            apart = float(np.linalg.norm(lab(colours[one], eye) - lab(colours[other], eye)))
            assert apart >= 15, (one, other, apart)
