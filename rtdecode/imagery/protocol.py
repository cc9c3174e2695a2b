"""The imagery protocol that an experiment follows: a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from rtdecode.errors import BundleError, SettingsError
from rtdecode.typed import Table, checked


class ImageryProtocol(Table, frozen=True, kw_only=True):
    """What is imagined when, and when something is said of it.

    Attributes
    ----------
    targets : dict of str to str
        Cue, and the stimulus that it asks to imagine; the experiment announces the imagery epoch, a trial of its own
        after that of the cue, with this stimulus.
    cue : str
        Condition of announced cues.
    catch : str
        Stimulus of announced epochs in which nothing is to be imagined.
    warm_up : int
        Epochs from which the statistics of a task are frozen; before that nothing is said.
    least_repeats : int
        Repeats of a target from which its running average is told.
    """

    targets: dict[str, str]
    cue: str = "cue"
    catch: str = "catch"
    warm_up: Annotated[int, Meta(ge=2)] = 12
    least_repeats: Annotated[int, Meta(ge=1)] = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, each once."""
        return tuple(dict.fromkeys(self.targets.values()))


def read_protocol(path: Path) -> ImageryProtocol:
    """Read a protocol.

    Raises
    ------
    SettingsError
        It is no TOML file, says what is not known, or names fewer than two targets.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: expected a TOML file: {error}"]) from None
    try:
        found: ImageryProtocol = checked(raw, ImageryProtocol, source=str(path), error=BundleError)
    except BundleError as error:
        raise SettingsError([str(error)]) from None
    if len(found.names) < 2:
        raise SettingsError([f"{path}: targets: expected at least two, got {len(found.names)}"])
    return found
