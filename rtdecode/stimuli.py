"""Stimuli by name: their pictures in a folder, named by the stimulus identifier, and what is no stimulus."""

from __future__ import annotations

import re
from pathlib import Path

from rtdecode.errors import BundleError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CONTENT_FREE = "null"
"""Folder in that of the stimuli for pictures without content, which no trial may be decoded as."""
_NO_WORD = re.compile(r"[^a-z0-9]+")
_BASELINE = frozenset((
    "na", "nan", "none", "null", "nullevent", "nulltrial", "blank", "blankscreen", "rest", "resting", "restblock",
    "restperiod", "baseline", "fix", "fixation", "fixationcross", "fixcross", "fixationpoint", "fixationblock",
    "cross", "crosshair", "iti", "isi", "intertrialinterval", "interstimulusinterval", "response", "button",
    "buttonpress", "press", "keypress", "key",
))  # fmt: skip


def pictures_in(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by stimulus, in the order of their names.

    Raises
    ------
    BundleError
        There are none, or two of one stimulus.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise BundleError(
                f"{folder}: expected one picture of {path.stem}, got {found[path.stem].name}, {path.name}"
            )
        found[path.stem] = path
    if not found:
        raise BundleError(
            f"{folder}: expected pictures named <stimulus>{SUFFIXES[0]} ({', '.join(SUFFIXES)}), found none"
        )
    return found


def picture_of(folder: Path, stimulus: str) -> Path | None:
    """Return the picture of a stimulus, one without content included; None if there is none."""
    names = [place / f"{stimulus}{suffix}" for place in (folder, folder / CONTENT_FREE) for suffix in SUFFIXES]
    return next((path for path in names if path.is_file()), None)


def is_baseline(trial_type: str) -> bool:
    """Whether a ``trial_type`` of BIDS events names what a response is compared with, or an answer, and no stimulus.

    Such rows are no trials: with the rest as one more condition nothing would be left to compare with.
    """
    return _NO_WORD.sub("", trial_type.lower()) in _BASELINE
