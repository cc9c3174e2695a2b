"""Pictures of stimuli in a folder: the name of a picture without its suffix is the stimulus identifier."""

from __future__ import annotations

from pathlib import Path

from rtdecode.errors import BundleError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


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
    """Return the picture of a stimulus, None if there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stimulus}{suffix}").is_file()), None)
